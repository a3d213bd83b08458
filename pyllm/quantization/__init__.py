"""Making quantised checkpoints (reading them is pyllm.checkpoint's): quantize(), and what its receipts hold."""

from .drift import Drift
from .quantize import TooFarError, quantize, sample_text
from .receipt import Receipt

__all__ = ["Drift", "Receipt", "TooFarError", "quantize", "sample_text"]
