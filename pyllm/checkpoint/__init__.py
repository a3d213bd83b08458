"""From a folder or a Hub id to configuration and tensors. No interpretation of either: that is pyllm.models' work."""

from .checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
