"""pyllm as one more engine of a peer-comparison harness: same cases, same prompts, one JSON line each.

    HARNESS=<folder with common.py> MODELS=<folder> python bench/drive_pyllm.py --model gpt2-124m --dtype int8 ...

--dtype: float32, bfloat16, float16 or a quantization (int8, int8-fast, int4, int4-g128), by which float32 stands for
everything not quantised unless --rest names another; --kv-cache as in pyllm.load. The end token is disabled.
"""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path.insert(0, os.environ["HARNESS"])
import common  # type: ignore[import-not-found]

DTYPES = ["float32", "bfloat16", "float16", "int8", "int8-fast", "int4", "int4-g128"]


def main() -> None:
    """Loads one model in one form and runs the cases asked for."""
    args = common.args(DTYPES)
    rest = dict(zip(args.rest[::2], args.rest[1::2], strict=True))
    os.environ["PYLLM_NUM_THREADS"] = str(args.threads)
    import pyllm
    from pyllm import _C

    quantization = None if args.dtype in DTYPES[:3] else args.dtype
    options: dict[str, Any] = {"dtype": rest.get("--rest", "bfloat16") if quantization else args.dtype}
    if quantization:
        options["quantization"] = quantization
    if "--kv-cache" in rest:
        options["kv_cache"] = rest["--kv-cache"]
    model = pyllm.load(os.path.join(common.MODELS, args.model), **options)
    args.note = f"{args.note} isa={_C.isa()}".strip()

    def generate(prompts: list[list[int]], new_tokens: int, beams: int = 1) -> None:
        results = model.generate(
            prompts,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            eos_token_id=[],
            num_beams=beams,
            do_sample=False,
        )
        assert all(len(result.token_ids) == new_tokens for result in results)

    if args.model == "bert-base":
        common.encoder_cases("pyllm", pyllm.__version__, args, lambda ids: model.forward(ids, output="hidden"))
    elif args.model in ("marian-base", "t5-small"):
        common.seq2seq_cases("pyllm", pyllm.__version__, args, lambda ids, beams, new: generate(ids, new, beams))
    else:
        common.decoder_cases(
            "pyllm", pyllm.__version__, args, generate, lambda ids, beams, new: generate([ids], new, beams)
        )


if __name__ == "__main__":
    main()
