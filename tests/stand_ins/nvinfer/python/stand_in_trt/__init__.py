"""A TensorRT for tests: Python over the stand-in's libraries, with the names of the real modules.

`tensorrt` and `tensorrt_rtx` beside it are this, each for its flavour.
"""

from stand_in_trt.module import names_of

__all__ = ["names_of"]
