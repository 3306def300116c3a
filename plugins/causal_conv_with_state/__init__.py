"""Causal depthwise convolution that carries its last columns: of ai.onnx 27."""
