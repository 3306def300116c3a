"""The subcommands of `glm-trt`, one a file: arguments, an example, one call of the library."""
