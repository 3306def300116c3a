"""Names of what can be validated, apart from what runs it: the command's help needs no more."""

# Name → what it is, for help texts and reports.
SUBJECTS = {
    "onnxruntime": "onnxruntime on the CPU, the graphs rewritten as `glm-trt run` does",
    "onnxruntime-plain": "onnxruntime on the CPU, the graphs as they are in the bundle",
    "graph": "the bundle's graphs, node by node in PyTorch",
    "kernels": "the bundle's graphs in PyTorch, with the plugins' Triton kernels interpreted",
    "eager": "the eager model with absorbed attention",
    "tensorrt": "the bundle's engines on TensorRT",
    "tensorrt-rtx": "the bundle's engines on TensorRT-RTX",
}
