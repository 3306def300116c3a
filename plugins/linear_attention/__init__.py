"""Linear attention with a matrix-valued state: of ai.onnx 27."""
