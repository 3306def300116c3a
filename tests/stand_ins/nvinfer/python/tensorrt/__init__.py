"""TensorRT for tests: see stand_in_trt."""

from stand_in_trt import names_of

globals().update(names_of("tensorrt", "11.4.0.106", "libnvinfer.so.10"))
