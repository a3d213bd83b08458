"""Encoders and encoder-decoders of real shapes with random weights: BERT-base and Marian-base, as JSON.

    python bench/shapes.py [--threads N] [--dtypes float32,bfloat16] [--only bert,marian] [--bert DIR] [--marian DIR]

bert: bert-base-uncased's shape; milliseconds for 1 x 128 tokens, sequences/s for 32 x 128 and for 32 ragged texts of 8
to 128 tokens, with the share of the matmul arithmetic. marian: opus-mt's shape (6 + 6 layers of 512, a vocabulary of
58,101); target tokens/s for sources of 30 tokens and targets of 30, greedy and with 4 beams, batch 1 and 32, the end
token disabled. Medians of a few runs; batches are checked against single texts first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from random_model import write_random

import pyllm
from pyllm import _C
from pyllm.program.program import Linear

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
MARIAN: dict[str, Any] = {
    "model_type": "marian",
    "architectures": ["MarianMTModel"],
    "vocab_size": 58101,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "activation_function": "swish",
    "max_position_embeddings": 512,
    "scale_embedding": True,
    "static_position_embeddings": True,
    "is_encoder_decoder": True,
    "pad_token_id": 58100,
    "eos_token_id": 0,
    "decoder_start_token_id": 58100,
}
RUNS = 5


def seconds(run: Callable[[], Any], runs: int = RUNS) -> float:
    run()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def bert(model: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    texts = random.randint(1000, 30000, size=(32, 128)).tolist()
    ragged = [text[:length] for text, length in zip(texts, random.randint(8, 129, size=32), strict=True)]
    alone = model.forward([ragged[3]], output="hidden")[0]
    if not np.array_equal(model.forward(ragged, output="hidden")[3], alone):
        sys.exit("wrong result: a text depends on its batch")
    flop = 2 * sum(op.weight.shape[0] * op.weight.shape[1] for op in model.program.ops if isinstance(op, Linear))
    one = seconds(lambda: model.forward(texts[:1], output="hidden"))
    many = seconds(lambda: model.forward(texts, output="hidden"), 3)
    mixed = seconds(lambda: model.forward(ragged, output="hidden"), 3)
    tokens = sum(map(len, ragged))
    return {
        "milliseconds_1x128": round(1e3 * one, 2),
        "gflops_1x128": round(flop * 128 / one / 1e9, 1),
        "sequences_a_second_32x128": round(32 / many, 1),
        "gflops_32x128": round(flop * 128 * 32 / many / 1e9, 1),
        "tokens_a_second_ragged": round(tokens / mixed),
        "tokens_a_second_32x128": round(32 * 128 / many),
    }


def marian(model: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    sources = random.randint(100, 58000, size=(32, 30)).tolist()
    model.generation_config = {}  # no end token, forced or not: every target has 30 tokens
    options = {"max_new_tokens": 30, "do_sample": False}
    alone = model.generate(sources[5], **options)
    if model.generate(sources[:8], **options)[5].token_ids != alone.token_ids:
        sys.exit("wrong result: a translation depends on its batch")
    found = {}
    for beams in (1, 4):
        for batch in (1, 32):
            run = lambda: model.generate(sources[:batch], num_beams=beams, **options)  # noqa: B023, E731
            taken = seconds(run, RUNS if batch == 1 else 2)
            found[f"tokens_a_second_beams_{beams}_batch_{batch}"] = round(30 * batch / taken, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--only", default="bert,marian")
    for name in ("bert", "marian"):
        parser.add_argument(f"--{name}", type=Path, help="a checkpoint folder instead of the random one")
    args = parser.parse_args()
    cases = {"bert": (BERT, bert), "marian": (MARIAN, marian)}
    print(json.dumps({"isa": _C.isa(), "threads": args.threads}))
    for name in args.only.split(","):
        config, measure = cases[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = getattr(args, name) or Path(temporary)
            if folder == Path(temporary):
                write_random(folder, config)
            for dtype in args.dtypes.split(","):
                with pyllm.load(folder, dtype=dtype, num_threads=args.threads) as model:
                    print(json.dumps({"model": name, "dtype": dtype, **measure(model)}), flush=True)


if __name__ == "__main__":
    main()
