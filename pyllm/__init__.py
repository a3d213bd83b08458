"""Language models from Hugging Face checkpoints, run by C++ kernels: no conversion, no PyTorch.

    import pyllm

    model = pyllm.load("folder-or-hub-id")
    print(model.generate("Once upon a time", max_new_tokens=40).text)

Public names are imported when first used.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors, ops
    from .engine.encoder_model import EncoderModel
    from .engine.language_model import LanguageModel
    from .engine.loading import default_model, load
    from .engine.results import GeneratedSequence, Generation
    from .engine.scoring import Score
    from .engine.seq2seq_model import Seq2SeqModel
    from .engine.streams import TextStream
    from .pipelines import pipeline

_HOMES = {
    "load": "engine.loading",
    "default_model": "engine.loading",
    "EncoderModel": "engine.encoder_model",
    "LanguageModel": "engine.language_model",
    "Score": "engine.scoring",
    "Seq2SeqModel": "engine.seq2seq_model",
    "Generation": "engine.results",
    "GeneratedSequence": "engine.results",
    "TextStream": "engine.streams",
    "pipeline": "pipelines",
}
_MODULES = ("errors", "ops")

__all__ = [
    "EncoderModel",
    "GeneratedSequence",
    "Generation",
    "LanguageModel",
    "Score",
    "Seq2SeqModel",
    "TextStream",
    "__version__",
    "default_model",
    "errors",
    "load",
    "ops",
    "pipeline",
]

_COMPILED = ("pyllm._C", "pyllm.decode._search")


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'pyllm' has no attribute {name!r}")
    if name != "errors":
        _require_compiled()
    module = importlib.import_module(f".{_HOMES.get(name, name)}", __name__)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _require_compiled() -> None:
    """Raises ImportError with the cure when the extension modules were not built for this Python."""
    missing = [name for name in _COMPILED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"[pyllm] the compiled modules must be installed, got no {' and no '.join(missing)} for this Python; "
            "reinstall the package, or run `pip install -e .` in a source tree"
        )
