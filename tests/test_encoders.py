"""Every encoder family against transformers: recorded outputs (tests/fixtures), and live where torch is here.

Runners: "float64" (the NumPy oracle), "float32" and "bfloat16" (the C++ core). A text's results may not depend on its
neighbours or on the threads: bitwise on the core.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import toy_config, toy_folder
from safetensors.numpy import load_file, save_file
from toy_encoders import ENCODERS, STORED_DTYPE

import pyllm
from pyllm import errors
from pyllm.checkpoint import open_checkpoint
from pyllm.devices.reference import ReferenceRunner
from pyllm.engine.encoder_model import EncoderModel
from pyllm.models import bind, build_network, network_of
from pyllm.models.deberta import distance_index
from pyllm.models.mpnet import buckets
from pyllm.program.batch import Capture

# Sums of up to ~100 float32 terms through two to four layers; measured differences are near 2e-6, in ModernBERT 2e-5:
# its residual stream grows from layer to layer.
FLOAT32_TOLERANCE = 1e-4
# bfloat16 keeps 8 bits (2^-9 a rounding). Relative to the deviation of the hidden states, root of the mean square.
BFLOAT16_TOLERANCE = 2e-2
KINDS = ("float64", "float32", "bfloat16")
GOLDEN = Path(__file__).parent / "golden"
# Toys with a golden listing: one for each model_type, and one with a mean.
LISTED = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "mpnet", "modernbert"),
    *("deberta-v2", "modernbert-classify"),
)

Text = tuple[list[int], list[int]]


def make_model(folder: Path, kind: str, num_threads: int | None = None) -> EncoderModel:
    if kind == "float64":
        return pyllm.load(folder, device="reference")
    return pyllm.load(folder, dtype=kind, num_threads=num_threads)


def recorded(name: str) -> list[tuple[Text, np.ndarray, np.ndarray]]:
    """((ids, type_ids), output, last hidden state) of each recorded text."""
    with np.load(toy_folder(name) / "outputs.npz") as arrays:
        return [
            (
                (arrays[f"ids_{i}"].tolist(), arrays[f"type_ids_{i}"].tolist()),
                arrays[f"output_{i}"],
                arrays[f"hidden_{i}"],
            )
            for i in range(len(arrays) // 4)
        ]


def run(model: EncoderModel, texts: Sequence[Text], output: str) -> list[np.ndarray]:
    return model.forward([ids for ids, _ in texts], [types for _, types in texts], output=output)


def assert_close(kind: str, found: np.ndarray, expected: np.ndarray, spread: float) -> None:
    if kind == "bfloat16":
        assert np.sqrt(((found - expected) ** 2).mean()) <= BFLOAT16_TOLERANCE * spread
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def bits(arrays: Sequence[np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("name", LISTED)
def test_listing_is_golden(name: str) -> None:
    assert str(build_network(toy_config(name))) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_equal_those_of_transformers(name: str, kind: str) -> None:
    model = make_model(toy_folder(name), kind)
    texts, outputs, hidden = zip(*recorded(name), strict=True)
    for found, expected in zip(run(model, texts, "hidden"), hidden, strict=True):
        assert_close(kind, found, expected, hidden[-1].std())
    found = run(model, texts, "head" if model.head else "hidden")
    spread = max(1.0, outputs[-1].std())
    for rows, expected in zip(found, outputs, strict=True):
        assert_close(kind, rows, expected, spread)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_neighbours_and_threads_do_not_matter(name: str, kind: str) -> None:
    texts = [text for text, _, _ in recorded(name)]
    model = make_model(toy_folder(name), kind, 1)
    output = "head" if model.head else "hidden"
    alone = [bits(run(model, [text], output)) for text in texts]
    together = bits(run(model, [*texts[::-1], *texts], output))
    assert together == [each for (each,) in (*alone[::-1], *alone)]
    for threads in (2, 3):
        assert bits(run(make_model(toy_folder(name), kind, threads), texts, output)) == [each for (each,) in alone]


def test_bfloat16_follows_its_reference() -> None:
    """The roundings are the same, the order of sums is not."""
    for name in ("bert", "albert", "mpnet", "modernbert-classify"):
        checkpoint = open_checkpoint(toy_folder(name))
        network = build_network(checkpoint.config)
        exact = make_model(toy_folder(name), "bfloat16")
        oracle = make_model(toy_folder(name), "bfloat16")
        oracle._runner = ReferenceRunner(network, bind(network, checkpoint), dtype="bfloat16")
        oracle._idle = {}
        texts = [text for text, _, _ in recorded(name)]
        for found, expected in zip(run(exact, texts, "head"), run(oracle, texts, "head"), strict=True):
            assert np.sqrt(((found - expected) ** 2).mean()) <= 5e-3 * max(1, expected.std())


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert-classify", "deberta-v2"])
def test_every_instruction_set(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is bitwise the same on each of them, float32 up to rounding."""
    texts, outputs, _ = zip(*recorded(name), strict=True)
    monkeypatch.setenv("PYLLM_ISA", isa)
    for found, expected in zip(run(make_model(toy_folder(name), "float32"), texts, "head"), outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    found = bits(run(make_model(toy_folder(name), "bfloat16"), texts, "head"))
    monkeypatch.setenv("PYLLM_ISA", "scalar")
    assert bits(run(make_model(toy_folder(name), "bfloat16"), texts, "head")) == found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_and_attentions_equal_those_of_transformers_live(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loader: Any = getattr(transformers, ENCODERS[name]["architectures"][0])
    theirs = loader.from_pretrained(toy_folder(name), dtype=torch.float32, attn_implementation="eager").eval()
    model = make_model(toy_folder(name), "float64")
    for count in (2, 32, 33, min(96, model.max_length)):
        ids = np.random.default_rng(count).integers(3, 131, size=count).tolist()
        with torch.no_grad():
            expected = theirs(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        for found, rows in zip(model.hidden_states(ids), expected.hidden_states, strict=True):
            np.testing.assert_allclose(found, rows[0].numpy(), rtol=0, atol=FLOAT32_TOLERANCE)
        for index, weights in enumerate(expected.attentions):
            found = model.attentions(ids, [index])[0]
            np.testing.assert_allclose(found, weights[0].numpy(), rtol=0, atol=1e-5)


def test_albert_shares_its_layers() -> None:
    program = build_network(toy_config("albert")).main
    per_layer = 4  # qkv, attention output, two of the feed-forward
    others = 3 + 1 + 1  # embeddings (one is the decoder), their projection, the head's dense
    assert len(program.matrices()) == 2 * per_layer + others  # 4 layers in 2 groups


def test_mpnet_buckets_equal_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    encoder = pytest.importorskip("transformers.models.mpnet.modeling_mpnet").MPNetEncoder
    distances = torch.arange(-600, 601)
    found = np.array(buckets())[np.clip(np.arange(-600, 601) + 128, 0, 256)]
    assert found.tolist() == encoder.relative_position_bucket(distances).tolist()


@pytest.mark.parametrize(
    ("positions", "buckets", "longest"), [(512, 256, 512), (64, 16, 64), (100, 32, 100), (64, -1, 20)]
)
def test_deberta_distances_equal_those_of_transformers(positions: int, buckets: int, longest: int) -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    rows = torch.zeros(1, positions, 1)
    relative = theirs.build_relative_position(rows, rows, buckets, longest)[0]
    span = buckets if buckets > 0 else longest
    expected = torch.clamp(relative + span, 0, 2 * span - 1)
    found = np.array(distance_index(positions, buckets, longest))
    place = np.arange(positions)[None, :] - np.arange(positions)[:, None] + positions - 1
    np.testing.assert_array_equal(found[place], expected.numpy())


def rewritten(folder: Path, name: str, rename: Any, config: dict[str, Any] | None = None) -> Path:
    """A copy of a toy's folder whose tensors are what `rename(dict of tensors)` makes of them; float32 ones only."""
    assert STORED_DTYPE.get(name, "float32") == "float32"
    tensors = load_file(toy_folder(name) / "model.safetensors")
    save_file(
        {key: np.ascontiguousarray(array) for key, array in rename(tensors).items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(toy_config(name) | (config or {})))
    return folder


def as_first_bert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the Hub's bert-base-uncased stores them: TensorFlow's names, positions, the decoder twice, another head."""
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for key, array in tensors.items()
    }
    return old | {
        "bert.embeddings.position_ids": np.arange(64, dtype=np.int64)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "cls.seq_relationship.weight": np.zeros((2, 24), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
        "bert.pooler.dense.weight": np.zeros((24, 24), np.float32),
        "bert.pooler.dense.bias": np.zeros(24, np.float32),
    }


def test_old_names_and_tensors_of_other_heads_are_understood(tmp_path: Path) -> None:
    model = make_model(rewritten(tmp_path, "bert", as_first_bert), "float64")
    for text, output, _ in recorded("bert"):
        np.testing.assert_allclose(run(model, [text], "head")[0], output, rtol=0, atol=FLOAT32_TOLERANCE)


def test_names_without_prefix_are_understood(tmp_path: Path) -> None:
    def bare(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key.removeprefix("bert."): array for key, array in tensors.items() if not key.startswith("cls.")}

    folder = rewritten(tmp_path, "bert", bare, {"architectures": None})
    model = make_model(folder, "float64")
    assert model.head is None
    for text, _, hidden in recorded("bert"):
        np.testing.assert_allclose(run(model, [text], "hidden")[0], hidden, rtol=0, atol=FLOAT32_TOLERANCE)


def test_a_checkpoint_without_its_head_is_a_base_model(tmp_path: Path) -> None:
    """sentence-transformers' folders keep the `architectures` of the model they began with."""

    def headless(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: array for key, array in tensors.items() if not key.startswith("vocab_")}

    model = make_model(rewritten(tmp_path, "distilbert", headless), "float64")
    assert model.head is None
    with pytest.raises(errors.UnsupportedModelError, match=r"logits need a head.*DistilBertForMaskedLM"):
        model.logits([5, 6])

    def half(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: array for key, array in tensors.items() if key != "vocab_transform.weight"}

    with pytest.raises(errors.CheckpointError, match=r"vocab_transform.weight is missing"):
        make_model(rewritten(tmp_path, "distilbert", half), "float64")


def test_an_untied_decoder(tmp_path: Path) -> None:
    def untied(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return tensors | {"cls.predictions.decoder.weight": -tensors["bert.embeddings.word_embeddings.weight"]}

    with pytest.raises(errors.CheckpointError, match=r"decoder.weight must equal .*word_embeddings.weight"):
        make_model(rewritten(tmp_path, "bert", untied), "float64")
    model = make_model(rewritten(tmp_path, "bert", untied, {"tie_word_embeddings": False}), "float64")
    bias = load_file(tmp_path / "model.safetensors")["cls.predictions.bias"]
    text, output, _ = recorded("bert")[1]
    np.testing.assert_allclose(run(model, [text], "head")[0], 2 * bias - output, rtol=0, atol=FLOAT32_TOLERANCE)


LIES: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "heads": ("bert", {"num_attention_heads": 5}, errors.InvalidConfigError, "num_attention_heads, got 24 and 5"),
    "negative": ("bert", {"hidden_size": -3}, errors.InvalidConfigError, "hidden_size must be a whole number from 1"),
    "activation": ("bert", {"hidden_act": "mish"}, errors.UnsupportedModelError, "hidden_act 'mish'"),
    "positions": ("bert", {"position_embedding_type": "relative_key"}, errors.UnsupportedModelError, "'relative_key'"),
    "decoder": ("bert", {"is_decoder": True}, errors.UnsupportedModelError, "is_decoder"),
    "class": ("bert", {"architectures": ["BertForMultipleChoice"]}, errors.UnsupportedModelError, "MultipleChoice"),
    "generating class": ("bert", {"architectures": ["BertLMHeadModel"]}, errors.UnsupportedModelError, "LMHeadModel"),
    "classes": ("bert", {"architectures": "BertModel"}, errors.InvalidConfigError, "architectures must be a list"),
    "labels": ("bert", {"id2label": {"0": "a"}, "num_labels": 3}, errors.InvalidConfigError, "have 3 and 1 labels"),
    "offset": ("roberta", {"max_position_embeddings": 2}, errors.InvalidConfigError, "more than 2, got 2"),
    "groups": ("albert", {"num_hidden_groups": 9}, errors.InvalidConfigError, "num_hidden_groups must be .* 1 to 4"),
    "buckets": ("mpnet", {"relative_attention_num_buckets": 8}, errors.InvalidConfigError, "from 32 to"),
    "pooling": ("modernbert", {"classifier_pooling": "max"}, errors.UnsupportedModelError, "classifier_pooling 'max'"),
    "layers": ("modernbert", {"layer_types": ["full"]}, errors.InvalidConfigError, "layer_types must list"),
    "positions for deberta": ("deberta-v2", {"max_position_embeddings": 2**30}, errors.InvalidConfigError, "to 65536"),
    "heads for deberta": (
        "deberta-v2",
        {"hidden_size": 2**17, "num_attention_heads": 2**17, "position_buckets": 2},
        errors.InvalidConfigError,
        "num_hidden_layers \\* num_attention_heads must be up to 65536, got 262144",
    ),
    "convolution": ("deberta-v2", {"conv_kernel_size": 3}, errors.UnsupportedModelError, "a convolution"),
    "few buckets": ("deberta-v2", {"position_buckets": 1}, errors.InvalidConfigError, "position_buckets must be"),
    "terms": ("deberta-v2", {"pos_att_type": "c2p|p2p"}, errors.UnsupportedModelError, "pos_att_type 'c2p|p2p'"),
    "dim": ("distilbert", {"dim": 25}, errors.InvalidConfigError, "dim must be a multiple of n_heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_configurations_that_lie(case: str) -> None:
    name, changes, error, message = LIES[case]
    with pytest.raises(error, match=message):
        build_network(toy_config(name) | changes)


def test_captures_of_several_texts_are_joined() -> None:
    model = make_model(toy_folder("bert"), "float64")
    texts = [text for text, _, _ in recorded("bert")]
    last = model.program.hidden[-1]
    capture = Capture((last,), ("layer1.attn",))
    model.forward([ids for ids, _ in texts], capture=capture)
    apart = [model.hidden_states(ids, [-1])[0] for ids, _ in texts]
    np.testing.assert_allclose(capture.values[last], np.concatenate(apart), rtol=0, atol=1e-6)
    assert [weights.shape for weights in capture.weights["layer1.attn"]] == [(2, n, n) for n in (1, 7, 60)]
    np.testing.assert_allclose(capture.weights["layer1.attn"][2].sum(-1), 1, rtol=0, atol=1e-5)


def test_the_network_of_a_checkpoint_keeps_its_head() -> None:
    assert network_of(open_checkpoint(toy_folder("bert"))).head == "masked-lm"
    assert network_of(open_checkpoint(toy_folder("electra"))).head == "token-classification"


if __name__ == "__main__":
    for toy in LISTED:
        (GOLDEN / f"{toy}.txt").write_text(str(build_network(toy_config(toy))))
