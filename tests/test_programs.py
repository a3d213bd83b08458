"""Programs as text, held by golden files, and the recorder's checks.

After an intended change of a listing: `python tests/test_programs.py` writes tests/golden/ anew; read the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import toy_config
from toy_decoders_a import LISTED_A
from toy_decoders_b import LISTED_B

from pyllm.errors import ProgramError
from pyllm.models import build_program
from pyllm.models.blocks import conv1d, joined, matrix, table, vector
from pyllm.program.recorder import Recorder
from pyllm.program.tensors import Matrix, Source

GOLDEN = Path(__file__).parent / "golden"
LISTED = {"gpt2": "gpt2", "llama": "llama", "qwen2": "qwen2", "llama-biases": "llama-rope-linear-biases"}
LISTED |= LISTED_A | LISTED_B


@pytest.mark.parametrize("name", LISTED)
def test_listing_is_golden(name: str) -> None:
    assert str(build_program(toy_config(LISTED[name]))) == (GOLDEN / f"{name}.txt").read_text()


def test_layers_differ_by_index_only() -> None:
    config = toy_config("llama") | {"num_hidden_layers": 4}
    _, second, third, fourth = str(build_program(config)).split("\n\n")[2:-1]
    for index, block in ((2, third), (3, fourth)):
        shifted = second.replace("layer1.", f"layer{index}.").replace("layer0.", f"layer{index - 1}.")
        assert block == re.sub(r"\b(layers\.|cache )1\b", rf"\g<1>{index}", shifted)


def test_a_tied_head_is_one_matrix() -> None:
    tied, untied = toy_config("gpt2"), toy_config("gpt2") | {"tie_word_embeddings": False}
    assert len(build_program(untied).matrices()) == len(build_program(tied).matrices()) + 1


def recorder() -> Recorder:
    return Recorder("toy", vocab_size=10, max_positions=8)


def test_a_linear_must_fit_its_input() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    with pytest.raises(ProgramError, match=r"\[recorder\] fc: weight 'fc' takes rows of 7, 'embed' \[T, 6\] was given"):
        r.linear("fc", x, matrix("fc", 4, 7))


def test_a_residual_must_fit_the_output() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    with pytest.raises(ProgramError, match=r"residual must be \[T, 4\], 'embed' \[T, 6\] was given"):
        r.linear("fc", x, conv1d("fc", 4, 6), residual=x)
    with pytest.raises(ProgramError, match=r"residual must be \[R, 6\]"):
        r.linear("late", r.select("last", x), matrix("late", 6, 6), residual=x)


def test_a_matrix_must_fit_its_sources() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    with pytest.raises(ProgramError, match=r"must be \[8, 6\], its sources are a \[4, 5\]"):
        r.linear("fc", x, Matrix("fc", (8, 6), (Source("a", (4, 5)),)))
    with pytest.raises(ProgramError, match=r"8 outputs, its bias has 3"):
        r.linear("fc", x, Matrix("fc", (8, 6), (Source("a", (8, 6)),), (Source("b", (3,)),)))
    with pytest.raises(ProgramError, match="two equal sources"):
        r.linear("fc", x, joined("fc", [("gate", 4), ("up", 6)], 6, gated=True))


def test_heads_of_a_linear_must_fit() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    pair = [matrix("a", 5, 2), matrix("b", 5, 2)]
    assert r.head_linear("pair", x, pair, begin=2).cols == 10
    with pytest.raises(ProgramError, match="a matrix a head"):
        r.head_linear("none", x, [])
    with pytest.raises(ProgramError, match=r"weight 'c' must be \[5, 2\] as the first head's"):
        r.head_linear("uneven", x, [*pair, matrix("c", 4, 2)])
    for begin in (-1, 3):
        with pytest.raises(ProgramError, match=rf"2 heads of 2 from column {begin} on do not lie in 'embed' \[T, 6\]"):
            r.head_linear("outside", x, pair, begin=begin)


def test_attention_must_fit_its_heads() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    qkv = r.linear("qkv", x, matrix("qkv", 18, 6))
    heads = {"num_heads": 3, "num_kv_heads": 3, "head_dim": 2, "scale": 1.0}
    with pytest.raises(ProgramError, match="layers 0, 1, 2"):
        r.attention("attn", qkv, **heads)
    with r.layer(0):
        with pytest.raises(ProgramError, match=r"layer0.attn: 4 query and 2 .* take \[T, 16\], 'qkv' \[T, 18\]"):
            r.attention("attn", qkv, num_heads=4, num_kv_heads=2, head_dim=2, scale=1.0)
        with pytest.raises(ProgramError, match=r"shared out evenly"):
            r.attention("attn", qkv, num_heads=5, num_kv_heads=2, head_dim=2, scale=1.0)
        with pytest.raises(ProgramError, match=r"rope must be \[T, up to 2\]"):
            r.attention("attn", qkv, rope=r.rotary("rope", [1.0, 0.1]), **heads)


def test_a_program_ends_in_logits_and_wastes_nothing() -> None:
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    with pytest.raises(ProgramError, match="names must be unique"):
        r.layer_norm("embed", x, vector("w", 6), None, 1e-5)
    with pytest.raises(ProgramError, match=r"'w' has 5 elements, 'embed' \[T, 6\] was given"):
        r.rms_norm("norm", x, vector("w", 5), 1e-5)
    spare = r.rotary("spare", [1.0])
    with pytest.raises(ProgramError, match=r"must be \[R, n\], 'spare' \[T, 2\] was given"):
        r.finish(spare)
    early = r.select("early", x)
    r.linear("late", early, matrix("late", 6, 6))
    with pytest.raises(ProgramError, match="must be what the last operation writes, 'early' is not"):
        r.finish(early)
    r = recorder()
    x = r.embed("embed", table("wte", 10, 6))
    r.rotary("spare", [1.0])
    logits = r.linear("logits", r.select("last", x), table("wte", 10, 6))
    with pytest.raises(ProgramError, match="every buffer must be read, these are not: spare"):
        r.finish(logits)


if __name__ == "__main__":
    for name, toy in LISTED.items():
        (GOLDEN / f"{name}.txt").write_text(str(build_program(toy_config(toy))))
