"""Encoder-decoder checkpoints as the Hub holds them: names, copies and gaps of every age; configurations that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import toy_folder
from safetensors.numpy import load_file, save_file
from stepping_seq2seq import outputs_of
from toy_seq2seq import CONFIGS

import pyllm
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.engine.encoder_model import EncoderModel
from pyllm.errors import CheckpointError, InvalidConfigError, UnsupportedModelError
from pyllm.models import bind, build_network, build_program

GOLDEN = Path(__file__).parent / "golden"
LISTED = ("t5", "t5-v1.1", "mt5", "umt5", "bart", "bart-mnli", "plbart", "mbart", "pegasus", "marian-separate")
LISTED += ("m2m_100", "blenderbot", "blenderbot-small")
SOURCE, DECODER = [11, 12, 13, 14, 2], [2, 30, 31, 32]

Tensors = dict[str, np.ndarray]


@pytest.mark.parametrize("name", LISTED)
def test_listing_is_golden(name: str) -> None:
    assert str(build_network(CONFIGS[name])) == (GOLDEN / f"{name}.txt").read_text()


def logits(folder: Path) -> np.ndarray:
    checkpoint = open_checkpoint(folder)
    network = build_network(checkpoint.config)
    return outputs_of(ReferenceRunner(network, bind(network, checkpoint)), SOURCE, DECODER)


def rewritten(name: str, folder: Path, change: Callable[[Tensors], Tensors], **fields: Any) -> Path:
    """A toy checkpoint with other tensors, and other fields in its config.json."""
    config = CONFIGS[name] | fields
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change(load_file(toy_folder(name) / "model.safetensors")), folder / "model.safetensors")
    return folder


def without_prefix(tensors: Tensors) -> Tensors:
    return {key.removeprefix("model."): value for key, value in tensors.items()}


def with_copies(tensors: Tensors) -> Tensors:
    """Every name of the one table, as torch files of transformers 2 to 4 have them."""
    prefix = "model." if "model.shared.weight" in tensors else ""
    shared = tensors[f"{prefix}shared.weight"]
    copies = (f"{prefix}encoder.embed_tokens.weight", f"{prefix}decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | {copy: shared.copy() for copy in copies}


def by_one_copy(tensors: Tensors) -> Tensors:
    """The table under the name of one copy only."""
    tensors = dict(tensors)
    prefix = "model." if "model.shared.weight" in tensors else ""
    return tensors | {f"{prefix}decoder.embed_tokens.weight": tensors.pop(f"{prefix}shared.weight")}


def with_leftovers(tensors: Tensors) -> Tensors:
    """What old files hold and no program reads."""
    if "model.shared.weight" not in tensors:
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return tensors | {name: np.ones((12, 3), np.float32)}
    tables = {
        f"model.{stack}.embed_positions.weight": np.ones((64, 24), np.float32) for stack in ("encoder", "decoder")
    }
    version = {"model.encoder.version": np.ones(1, np.float32), "model.decoder.version": np.ones(1, np.float32)}
    return tables | tensors | version  # learned tables stay


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "m2m_100"])
@pytest.mark.parametrize("change", [without_prefix, with_copies, by_one_copy, with_leftovers])
def test_names_of_every_age_load(name: str, change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    np.testing.assert_array_equal(logits(rewritten(name, tmp_path, change)), logits(toy_folder(name)))


def test_copies_must_be_equal(tmp_path: Path) -> None:
    def different(tensors: Tensors) -> Tensors:
        tensors = with_copies(tensors)
        tensors["lm_head.weight"][3, 4] += 1
        return tensors

    with pytest.raises(CheckpointError, match=r"lm_head.weight must equal model.shared.weight"):
        logits(rewritten("bart", tmp_path, different))


def test_a_missing_bias_of_the_logits_is_zero(tmp_path: Path) -> None:
    def without(tensors: Tensors) -> Tensors:
        return {key: value for key, value in tensors.items() if key != "final_logits_bias"}

    bias = load_file(toy_folder("bart") / "model.safetensors")["final_logits_bias"]
    found = logits(rewritten("bart", tmp_path, without))
    np.testing.assert_allclose(found, logits(toy_folder("bart")) - bias, rtol=0, atol=1e-6)


def test_an_untied_head_falls_back_on_the_table(tmp_path: Path) -> None:
    """transformers 5 ties T5 1.1's head where the file has none, and leaves it unscaled."""

    def without(tensors: Tensors) -> Tensors:
        return {key: value for key, value in tensors.items() if key != "lm_head.weight"}

    def twice(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["shared.weight"]}

    found = logits(rewritten("t5", tmp_path, without, tie_word_embeddings=False))
    np.testing.assert_array_equal(found, logits(rewritten("t5", tmp_path, twice, tie_word_embeddings=False)))
    np.testing.assert_allclose(found / 24**0.5, logits(toy_folder("t5")), rtol=0, atol=1e-6)


def test_a_config_of_transformers_5_says_whether_logits_are_scaled(tmp_path: Path) -> None:
    """It writes tie_word_embeddings true for every T5, and the head that is not tied beside the table."""

    def untied(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": 2 * tensors["shared.weight"]}

    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = rewritten("t5", tmp_path / "old", untied, tie_word_embeddings=False)
    new = rewritten("t5", tmp_path / "new", untied, tie_word_embeddings=True, scale_decoder_outputs=False)
    np.testing.assert_array_equal(logits(new), logits(old))
    np.testing.assert_allclose(logits(new) / 24**0.5, 2 * logits(toy_folder("t5")), rtol=0, atol=1e-5)


def test_untied_tables_of_transformers_4(tmp_path: Path) -> None:
    """Its files hold `shared` for both inputs and the head, those of 5 every table."""

    def older(tensors: Tensors) -> Tensors:
        tensors = dict(tensors)
        del tensors["model.encoder.embed_tokens.weight"]
        return tensors | {"model.shared.weight": tensors.pop("model.decoder.embed_tokens.weight")}

    def newer(tensors: Tensors) -> Tensors:
        table = tensors["model.decoder.embed_tokens.weight"]
        return tensors | {"model.encoder.embed_tokens.weight": table, "model.shared.weight": 0 * table}

    found = logits(rewritten("bart-untied", tmp_path, older))
    np.testing.assert_array_equal(found, logits(rewritten("bart-untied", tmp_path, newer)))


def test_an_encoder_by_itself(tmp_path: Path) -> None:
    """T5EncoderModel: the encoder's program without the decoder's keys and values."""
    fields = {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}
    folder = rewritten("t5", tmp_path, lambda tensors: tensors, **fields)
    checkpoint = open_checkpoint(folder)
    network = build_network(checkpoint.config)
    assert network.kind == "encoder"
    assert network.encode is not None
    assert not any(name.startswith("decoder") for name in bind(network, checkpoint).names())
    with pyllm.load(folder, device="reference") as model, np.load(toy_folder("t5") / "logits.npz") as arrays:
        assert isinstance(model, EncoderModel)
        rows = model.encode(arrays["source_3"].tolist())
        np.testing.assert_allclose(rows, arrays["encoded_3"], rtol=0, atol=1e-4)


def test_tables_are_shared_by_both_programs() -> None:
    for name in ("t5", "bart", "marian", "m2m_100", "blenderbot-small"):
        network = build_network(CONFIGS[name])
        both = [set(program.matrices()) for program in network.programs.values()]
        assert any("shared" in matrix.name for matrix in both[0] & both[1])
        assert sum(any("shared" in source.name for source in matrix.sources) for matrix in both[0] | both[1]) == 1


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("bart", {"decoder_attention_heads": 5}, "d_model must be a multiple of decoder_attention_heads, got 24 and 5"),
        ("bart", {"encoder_layers": -1}, "encoder_layers must be a whole number from 1 to 4096, got -1"),
        ("bart", {"d_model": None}, "d_model is missing"),
        ("marian", {"max_position_embeddings": 2**31 - 1}, "product with max_position_embeddings at most"),
        ("m2m_100", {"pad_token_id": -1}, "pad_token_id must be a whole number from 0"),
        ("bart-mnli", {"id2label": []}, "id2label must be an object"),
        ("t5", {"num_heads": "8"}, "num_heads must be a whole number"),
        ("t5", {"relative_attention_max_distance": 6}, "relative_attention_max_distance must be more than half"),
    ],
)
def test_a_configuration_that_lies(name: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        build_program(CONFIGS[name] | fields)


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("bart", {"is_encoder_decoder": False}, "is_encoder_decoder false: a decoder by itself"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder false: a decoder by itself"),
        ("bart", {"activation_function": "selu"}, "activation_function 'selu'"),
        ("t5", {"feed_forward_proj": "gated-selu"}, "feed_forward_proj 'gated-selu'"),
        ("bart", {"architectures": ["BartForQuestionAnswering"]}, "architectures 'BartForQuestionAnswering'"),
    ],
)
def test_a_configuration_out_of_reach(name: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        build_program(CONFIGS[name] | fields)


if __name__ == "__main__":  # after an intended change of a listing; read the difference
    for name in LISTED:
        (GOLDEN / f"{name}.txt").write_text(str(build_network(CONFIGS[name])))
