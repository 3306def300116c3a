"""The model as an API: `glm-trt serve`."""
