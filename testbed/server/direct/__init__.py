"""Inference calls without grpcio's thread pool: off unless asked for."""
