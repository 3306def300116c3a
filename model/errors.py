"""Errors a user can act on. `exit_code` is what the command ends with."""


class GlmTrtError(Exception):
    """Wrong input: the message says what was wrong, where, what was expected and found."""

    exit_code = 2


class ConfigError(GlmTrtError):
    """A config that is incomplete, contradictory or of an unsupported model."""


class CheckpointError(GlmTrtError):
    """A checkpoint whose files or tensors are not what its config says."""


class BundleError(GlmTrtError):
    """A bundle that is incomplete, altered or of another format version."""


class BlockError(GlmTrtError):
    """A block that a backend cannot run, though its inputs are as they should be."""


class MissingCapabilityError(GlmTrtError):
    """The machine lacks what was asked for: a GPU, a driver, a library."""

    exit_code = 3
