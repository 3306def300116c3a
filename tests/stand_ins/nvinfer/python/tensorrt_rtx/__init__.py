"""TensorRT-RTX for tests: see stand_in_trt."""

from stand_in_trt import names_of

globals().update(names_of("tensorrt_rtx", "1.7.1.116", "libtensorrt_rtx.so.1"))
