"""Every error pyllm raises on purpose. Each also subclasses the builtin a caller would catch.

Messages read `[where] rule, what was given, what to do`.
"""

from __future__ import annotations


class PyllmError(Exception):
    """Base of all errors raised by pyllm."""


class ModelNotFoundError(PyllmError, FileNotFoundError):
    """The folder or Hub id does not exist, or is not cached while offline."""


class UnsupportedModelError(PyllmError, ValueError):
    """The checkpoint's `model_type` (or a variant of it) has no description in pyllm.models."""


class InvalidConfigError(PyllmError, ValueError):
    """config.json or generation_config.json is missing, malformed or contradicts itself."""


class CheckpointError(PyllmError, ValueError):
    """Weight files are damaged, hostile, or do not hold the tensors the model needs."""


class ProgramError(PyllmError, ValueError):
    """A model description records operations that do not fit each other: a mistake in pyllm.models, not in a file."""


class TokenizerError(PyllmError, ValueError):
    """No usable tokenizer files, or a text or id the tokenizer cannot take."""


class InvalidOptionError(PyllmError, ValueError):
    """A generation or loading option is unknown, of a wrong type, or contradicts another."""


class UnknownOptionError(InvalidOptionError, TypeError):
    """An option name that does not exist; the message names the nearest one."""


class PromptError(PyllmError, ValueError):
    """A prompt that cannot be run: empty, or ids outside the vocabulary."""


class ContextLengthError(PromptError):
    """Prompt plus requested tokens exceed the model's context; the message has both numbers."""


class ArrayError(PyllmError, ValueError):
    """An array given to an operation, or a step's batch, has a wrong shape or dtype or contradicts itself."""


class NumericError(PyllmError, ArithmeticError):
    """The model produced NaN for a row of logits (damaged weights, or overflow)."""


class DeviceError(PyllmError, RuntimeError):
    """The requested device or instruction set is not available here."""


class PicklingError(PyllmError, TypeError):
    """A loaded model was to be pickled or copied: it holds memory and threads of this process."""


class OutOfMemoryError(PyllmError, MemoryError):
    """An allocation was refused; the message says what was asked and the model stays usable."""
