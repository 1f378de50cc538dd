"""The MEC server: ONNX Runtime tails behind gRPC, batched, bounded, measured."""
