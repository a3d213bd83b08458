"""Fill-in-the-middle: prompts from which code models write what belongs between a text and its suffix."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PromptError, UnsupportedModelError
from ..tokenization import Tokenizer


@dataclass(frozen=True)
class Format:
    """A family's special tokens: <prefix> text <suffix> rest <middle>, and what the model ends the middle with.

    spaced: the vocabulary puts a space before every text, which the suffix must not get.
    """

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...]
    spaced: bool = False


# Sources: the model cards of each, and for Code Llama the authors' generation.py (infilling_prompt_tokens).
FORMATS: dict[str, Format] = {
    "StarCoder": Format("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),
    "SantaCoder": Format("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),
    "Qwen2.5-Coder, CodeGemma": Format(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>", "<|file_separator|>"),
    ),
    "DeepSeek-Coder": Format("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<｜end▁of▁sentence｜>",)),
    "Code Llama": Format("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",), spaced=True),
}
_MARK = "☺"  # what Code Llama's own code puts before a suffix, so that no space comes before it


@dataclass(frozen=True)
class Infiller:
    """The format of one tokenizer, in token ids."""

    tokenizer: Tokenizer
    format: Format
    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Infiller:
        """Chosen by the special tokens that the vocabulary has. Raises UnsupportedModelError when it has none."""
        for known in FORMATS.values():
            ids = [tokenizer.token_to_id(token) for token in (known.prefix, known.suffix, known.middle)]
            prefix, suffix, middle = ids
            if prefix is not None and suffix is not None and middle is not None:
                ends = [tokenizer.token_to_id(token) for token in known.ends]
                every = (prefix, suffix, middle, *(id for id in ends if id is not None))
                return cls(tokenizer, known, prefix, suffix, middle, every)
        raise UnsupportedModelError(
            "[text-generation] suffix needs a model that fills in the middle, this vocabulary has none of the tokens "
            f"of {', '.join(FORMATS)}; leave suffix out, or load such a model"
        )

    def prompt(self, text: str, rest: str) -> list[int]:
        """The ids after which the model writes what stands between `text` and `rest`. Raises PromptError for texts that
        spell one of the format's own tokens."""
        before = self.tokenizer.encode(text, add_special_tokens=False)
        after = self._suffix_ids(rest)
        own = {self.prefix, self.suffix, self.middle}
        if own & {*before, *after}:
            raise PromptError(
                "[text-generation] a prompt with a suffix must not spell the tokens "
                f"{self.format.prefix}, {self.format.suffix} and {self.format.middle}; take them out"
            )
        return self.tokenizer.build_inputs([self.prefix, *before, self.suffix, *after, self.middle]).ids

    def _suffix_ids(self, rest: str) -> list[int]:
        if not self.format.spaced:
            return self.tokenizer.encode(rest, add_special_tokens=False)
        mark = self.tokenizer.encode(_MARK, add_special_tokens=False)
        return self.tokenizer.encode(_MARK + rest, add_special_tokens=False)[len(mark) :]
