"""From the eager model to ONNX graphs: one per kind of block."""
