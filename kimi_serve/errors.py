"""The errors of kimi_serve. Knows what can go wrong by name; never who raises it.

KimiServeError
    ConfigError      a checkpoint's configuration is missing, malformed or not supported
    ImageError       an image cannot be read or does not fit the model
    TokenizerError   a vocabulary file is malformed, or a token id is outside the embedding
    CheckpointError  a checkpoint's weights do not match its configuration
    ChatError        a conversation cannot be rendered
    AdapterError     a LoRA adapter is malformed, or cannot be applied to this checkpoint or in this engine
    QuantizeError    a checkpoint cannot be written anew, quantized or merged, as it was asked
    PlanError        a plan cannot be computed for what was asked
    KernelError      the compiled kernels are missing, or a call does not fit them
    LaunchError      an engine cannot be started on this machine, or stopped while it was supervised

All but the root, KernelError and LaunchError are ValueErrors too: the caller's input was wrong, and callers who only
know the standard library (vLLM's request validation) answer 400 to those.
"""


class KimiServeError(Exception):
    """Root of every error that kimi_serve raises on purpose."""


class ConfigError(KimiServeError, ValueError):
    """A checkpoint's configuration is missing, malformed or not supported."""


class ImageError(KimiServeError, ValueError):
    """An image cannot be read, or does not fit the model."""


class TokenizerError(KimiServeError, ValueError):
    """A vocabulary file is malformed, or a token id is outside the embedding."""


class CheckpointError(KimiServeError, ValueError):
    """A checkpoint's weights do not match its configuration."""


class ChatError(KimiServeError, ValueError):
    """A conversation cannot be rendered."""


class AdapterError(KimiServeError, ValueError):
    """A LoRA adapter is malformed, or cannot be applied to this checkpoint or in this engine."""


class QuantizeError(KimiServeError, ValueError):
    """A checkpoint cannot be written anew, quantized or merged, as it was asked."""


class PlanError(KimiServeError, ValueError):
    """A plan cannot be computed for what was asked."""


class KernelError(KimiServeError):
    """The compiled kernels are missing, or a call does not fit them."""


class LaunchError(KimiServeError):
    """An engine cannot be started on this machine, or stopped while it was supervised."""
