"""Streams that change decoded text as transformers does: cleaned-up spaces, runs of pieces between special tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection

from .streams import Stream

SPACE = "\u2581"  # SentencePiece's visible space
# transformers' clean_up_tokenization, pass by pass. All patterns begin with a space, and only one has a second one.
CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


def cleaned(text: str) -> str:
    for old, new in CLEAN_UP.items():
        text = text.replace(old, new)
    return text


class CleanedStream:
    """`cleaned` text of another stream.

    Text is certain up to a space after anything but a space or an apostrophe: no pattern lies across that place.
    """

    def __init__(self, inner: Stream) -> None:
        self.inner = inner
        self._text = ""
        self._skip = 0

    def push(self, token: str) -> str:
        self._text += self.inner.push(token)
        cut = len(self._text)
        while (cut := self._text.rfind(" ", 0, cut)) > 0:
            if self._text[cut - 1] not in " '":
                return self._take(cut)
        return ""

    def mark(self) -> None:
        self.inner.mark()
        self._skip = len(cleaned(self._text))

    def finish(self) -> str:
        self._text += self.inner.finish()
        return self._take(len(self._text))

    def _take(self, cut: int) -> str:
        text, self._text = cleaned(self._text[:cut]), self._text[cut:]
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]


class RunsStream:
    """Pieces as SentencePiece decodes them, in runs between special tokens; the whole without spaces at its ends.

    known: whether the model has a piece; others come out as they are. silent: pieces without text. Special tokens come
    out as they are, with `separator` after them. visible: whether a visible space in an unknown piece stays.
    """

    def __init__(
        self,
        known: Callable[[str], bool],
        silent: Collection[str],
        special: Collection[str],
        separator: str,
        visible: bool,
    ) -> None:
        self._known = known
        self._silent = silent
        self._special = special
        self._separator = separator
        self._visible = visible
        self._run_begun = False
        self._begun = False
        self._held = ""

    def push(self, token: str) -> str:
        if token in self._special:
            self._run_begun = False
            return self._trimmed(token + self._separator)
        text = "" if token in self._silent else token
        if self._known(token):
            if not self._run_begun:
                text = text.removeprefix(SPACE)
            text = text.replace(SPACE, " ")
        elif not self._visible:
            text = text.replace(SPACE, " ")
        self._run_begun = self._run_begun or bool(text)
        return self._trimmed(text)

    def mark(self) -> None:
        """Spaces that are held back are new text once something follows them."""

    def finish(self) -> str:
        return ""

    def _trimmed(self, text: str) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        certain = text.rstrip()
        self._begun = self._begun or bool(certain)
        self._held = text[len(certain) :]
        return certain
