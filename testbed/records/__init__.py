"""Measurements of frames, their Parquet rows, and the summary of a run."""
