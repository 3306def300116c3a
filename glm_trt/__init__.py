"""glm-trt: compile GLM-5.1 checkpoints to TensorRT."""

__version__ = "0.1.0"
