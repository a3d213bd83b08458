"""What a live reference is asked: texts that tokenizers stumble over, and inputs and options for the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PyllmError
from ..program.network import Network
from ..tokenization import Tokenizer, load_tokenizer

NASTY = (
    "",
    " ",
    "   three spaces before, two after  ",
    "\n",
    "line one\nline two\r\n\r\nline four\ttab",
    "Hello world! It's 3.14 o'clock, isn't it?",
    "don't can't we'll I'm they've",
    "ALL CAPS and MiXeD cAsE",
    "1234567890 1,000,000.00 -17e-3",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe",
    "nai\u0308ve cafe\u0301",
    "\u00c7a va? \u00a1Hola! \u00bfQu\u00e9 tal?",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "zero\u200bwidth non\u00a0breaking \u3000ideographic",
    "control \x01\x02\x7f end",
    "<s> </s> <pad> <unk> [CLS] [SEP] [MASK] <|endoftext|>",
    "def f(x):\n    return x ** 2  # comment\n",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "a" * 300,
    "\u2581visible\u2581space",
    "\ufb01 \u00bd \u2122 \u216b",
)
PROMPTS = (
    "The",
    "Once upon a time there was a small house at the edge of the forest.",
    "In the year 1905 a clerk in Bern wrote four papers. The first was about light, the second about the size of "
    "molecules, the third about dust in water, and the fourth about clocks that are moved. \u201cNobody read them "
    "at first,\u201d he said, \u201cand then everybody did.\u201d It took fourteen years, an eclipse, and two ships.",
)
LONGEST = 160  # tokens of one input
NEW_TOKENS = 24


@dataclass(frozen=True)
class Questions:
    """texts: to tokenize. inputs: token ids with their types, pairs for encoder-decoders. options: of generate(), by
    name; none for encoders."""

    kind: str
    texts: Sequence[str] = ()
    inputs: Sequence[tuple[list[int], list[int]]] = ()
    options: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def questions_of(folder: Path, config: Mapping[str, Any], network: Network, texts: Sequence[str] = ()) -> Questions:
    """Questions for a checkpoint. Without a tokenizer the inputs are ids drawn at random, the same each time."""
    try:
        tokenizer = load_tokenizer(folder, dict(config))
    except PyllmError:
        tokenizer = None
    return Questions(
        kind=network.kind,
        texts=() if tokenizer is None else (*NASTY, *texts),
        inputs=_inputs(network, tokenizer, config, (*PROMPTS, *texts)),
        options={} if network.step is None or network.head is not None else _options(config),
    )


def _inputs(
    network: Network, tokenizer: Tokenizer | None, config: Mapping[str, Any], texts: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """(ids, type ids) of decoders and encoders, (source, what the decoder reads) of encoder-decoders."""
    room = max(1, min(LONGEST, *(program.max_positions for program in network.programs.values())) - NEW_TOKENS)
    if network.kind == "encoder":
        room += NEW_TOKENS
    first = network.main if network.encode is None else network.encode  # reads the first of a pair
    if tokenizer is None:
        random = np.random.default_rng(0)
        sizes, high = (1, 7, min(40, room)), first.vocab_size
        found = [(random.integers(min(3, high - 1), high, size).tolist(), [0] * size) for size in sizes]
    elif network.kind == "encoder":
        pairs = [(text, None) for text in texts] + [(texts[1], texts[0])]
        encodings = [tokenizer.encode_plus(*pair) for pair in pairs]
        found = [(encoding.ids[:room], encoding.type_ids[:room]) for encoding in encodings]
    else:
        read = [tokenizer.encode(text)[:room] for text in texts]
        found = [(ids, [0] * len(ids)) for ids in read]
    found = [pair for pair in found if pair[0]]
    if network.kind != "encoder-decoder":
        return found
    start = start_token(config)
    if network.head is not None:  # a classifier looks for the end token, and reads the source again
        end = config.get("eos_token_id")
        sources = [[*ids[:-1], end] if isinstance(end, int) else ids for ids, _ in found]
        return [(ids, [start, *ids[:-1]]) for ids in sources]
    return [(ids, [start, *[token % network.main.vocab_size for token in ids[::-1]][: room - 1]]) for ids, _ in found]


def start_token(config: Mapping[str, Any]) -> int:
    """What an encoder-decoder's decoder begins with."""
    found = (config.get("decoder_start_token_id"), config.get("bos_token_id"), 0)
    return next(token for token in found if isinstance(token, int))


def _options(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Greedy and beam searches, told everything: no other options apply."""
    ends = config.get("eos_token_id")
    eos = ends[0] if isinstance(ends, list) and ends else ends
    known: dict[str, Any] = {"max_new_tokens": NEW_TOKENS}
    if isinstance(eos, int):
        pad = config.get("pad_token_id")
        known |= {"eos_token_id": ends, "pad_token_id": pad if isinstance(pad, int) and pad >= 0 else eos}
    if config.get("is_encoder_decoder"):
        known["decoder_start_token_id"] = start_token(config)
    return {
        "greedy": known,
        "4 beams": known | {"num_beams": 4, "num_return_sequences": 4},
        "3 beams, no end": {name: value for name, value in known.items() if name != "eos_token_id"}
        | {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.6},
    }
