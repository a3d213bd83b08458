"""Making quantised folders: what is planned, that they load as they were made, error compensation, limits, receipts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY

import pyllm
from pyllm import _C
from pyllm.checkpoint import open_checkpoint
from pyllm.cli import main
from pyllm.errors import CheckpointError, InvalidConfigError, InvalidOptionError
from pyllm.models import bind, network_of
from pyllm.quantization import TooFarError, quantize, sample_text
from pyllm.quantization.compensate import compensated
from pyllm.quantization.plan import plan

FIXTURES = REPOSITORY / "tests" / "fixtures"
DEFAULT = pyllm.default_model()
SHORT = sample_text().read_text()[:1500]


def planned(name: str) -> set[str]:
    checkpoint = open_checkpoint(FIXTURES / name)
    return set(plan(network_of(checkpoint)))


def test_tables_and_routers_and_what_they_are_tied_to_stay_floats() -> None:
    gpt2 = planned("gpt2")
    assert len(gpt2) == 8
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in gpt2), "its head is tied"
    mixtral = planned("mixtral")
    assert "lm_head.weight" in mixtral
    assert not any("embed" in name or "gate.weight" in name for name in mixtral)
    assert any("experts" in name for name in mixtral)
    assert not any("embed" in name or "shared" in name for name in planned("marian"))
    assert planned("bert")


def moments_of(rng: np.random.Generator, inputs: int) -> np.ndarray:
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    x = rng.standard_normal((4 * inputs, inputs)) @ mixing
    return x.T @ x


def values(codes: np.ndarray, scales: np.ndarray, dtype: str) -> np.ndarray:
    group = {"int4": 32, "int4-g128": 128}.get(dtype, codes.shape[1])
    middle = 0 if dtype == "int8" else 8
    return (codes.astype(np.float64) - middle) * np.repeat(scales.astype(np.float64), group, axis=1)[
        :, : codes.shape[1]
    ]


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4-g128"])
def test_compensation_leaves_less_error_than_rounding(dtype: str) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((24, 200)).astype(np.float32)
    moments = moments_of(rng, 200)

    def error(codes: np.ndarray, scales: np.ndarray) -> float:
        left = weights - values(codes, scales, dtype)
        return float(np.einsum("ni,ij,nj->", left, moments, left))

    assert error(*compensated(weights, moments, dtype)) < 0.8 * error(*_C.quantize(weights, dtype))


def test_compensation_is_the_published_algorithm() -> None:
    """Column by column with the whole inverse, updated by elimination (the optimal-brain form of Frantar et al.)."""
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((5, 32)).astype(np.float32)
    moments = moments_of(rng, 32)
    codes, scales = compensated(weights, moments, "int4")
    inverse = np.linalg.inv(moments + 0.01 * np.diag(moments).mean() * np.eye(32))
    left, expected = weights.astype(np.float64), np.empty((5, 32), np.uint8)
    for i in range(32):
        expected[:, i] = np.clip(np.rint(left[:, i] / scales[:, 0]), -8, 7) + 8
        error = (left[:, i] - (expected[:, i].astype(float) - 8) * scales[:, 0]) / inverse[i, i]
        left -= np.outer(error, inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    assert np.array_equal(codes, expected)


def test_inputs_that_are_never_used_do_no_harm() -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((4, 64)).astype(np.float32)
    moments = moments_of(rng, 64)
    moments[:, 10:20] = moments[10:20, :] = 0
    codes, scales = compensated(weights, moments, "int4")
    assert np.isfinite(scales).all()
    assert codes.max() <= 15


@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_a_written_folder_runs_as_its_source_quantised_at_load(tmp_path: Path, name: str, to: str) -> None:
    out = tmp_path / "out"
    source = FIXTURES / name
    made = quantize(source, out, to=to, text=list(range(5, 60)), force=True)
    checkpoint = open_checkpoint(out)
    bound = bind(network_of(checkpoint), checkpoint)
    assert made.quantized == sum(bound.kind(name) is not None for name in bound.names()) > 0
    with pyllm.load(out) as written, pyllm.load(source, quantization=to, dtype=written.dtype) as direct:
        assert written.quantization == direct.quantization == to
        ids = [5, 9, 2, 77, 31]
        assert np.array_equal(written.logits(ids), direct.logits(ids))


def test_the_default_model_in_every_form_with_a_receipt(tmp_path: Path) -> None:
    changes = {}
    for to in ("int8", "int4"):
        receipt = quantize(DEFAULT, tmp_path / to, to=to, text=SHORT, force=True)
        stored = json.loads((tmp_path / to / "receipt.json").read_text())
        assert stored["change"] == pytest.approx(receipt.drift.change)
        assert receipt.bytes < receipt.source_bytes
        assert str(receipt).startswith(str(DEFAULT))
        changes[to] = abs(receipt.drift.change)
        assert (tmp_path / to / "tokenizer.json").read_bytes() == (DEFAULT / "tokenizer.json").read_bytes()
        with pyllm.load(tmp_path / to) as model:
            assert model.generate("The prince", max_new_tokens=5, do_sample=False).token_ids
    assert changes["int8"] < 0.001
    assert changes["int8"] < changes["int4"] < 0.10


def test_calibration_brings_the_model_nearer(tmp_path: Path) -> None:
    text = sample_text().read_text()
    plain = quantize(DEFAULT, tmp_path / "plain", to="int4-g128", text=text[4000:], force=True)
    better = quantize(DEFAULT, tmp_path / "better", to="int4-g128", text=text[4000:], calibrate=text[:4000], force=True)
    assert better.calibrated
    assert better.drift.divergence < plain.drift.divergence


def test_too_far_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TooFarError, match=r"\[quantize\]") as caught:
        quantize(DEFAULT, tmp_path / "out", to="int4", text=SHORT, max_change=0)
    assert caught.value.receipt.drift.change > 0
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_all_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidOptionError) as caught:
        quantize(DEFAULT, tmp_path, to="int3", max_change=-1)
    assert all(part in str(caught.value) for part in ("to must be", "output must be", "max_change must be"))
    with pytest.raises(InvalidOptionError, match="two tokens"):
        quantize(DEFAULT, tmp_path / "out", text="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_folder_that_lies_about_itself_is_refused(tmp_path: Path) -> None:
    quantize(DEFAULT, tmp_path / "out", to="int8", text=SHORT, force=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for wrong in ("int3", {"quantization": None}, {"quantization": ["int8"]}, 8, []):
        config["quantization_config"]["pyllm"] = wrong
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InvalidConfigError, match=r"quantization_config\.pyllm"):
            pyllm.load(tmp_path / "out")


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    quantize(DEFAULT, tmp_path / "once", to="int8", text=SHORT, force=True)
    with pytest.raises(CheckpointError, match="quantised already"):
        quantize(tmp_path / "once", tmp_path / "twice", text=SHORT)


def test_the_command_prints_the_receipt(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(SHORT)
    arguments = ["quantize", "default", "-o", str(tmp_path / "out"), "--text", str(text)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["to"] == "int8"
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: [quantize] output must be a new or empty folder")
    refused = CliRunner().invoke(
        main,
        ["quantize", "default", "--to", "int4", "-o", str(tmp_path / "b"), "--max-change", "0", "--text", str(text)],
    )
    assert refused.exit_code == 1
    assert "perplexity" in refused.stderr


def test_a_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\xff\xfe\x00binary")
    for option in ("--text", "--calibrate"):
        result = CliRunner().invoke(main, ["quantize", "default", "-o", str(tmp_path / "out"), option, str(text)])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: [quantize] a text must be UTF-8")
