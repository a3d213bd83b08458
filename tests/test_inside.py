"""Hidden states and attention weights: those of transformers, from a forward pass and from generate()."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tested_device
from conftest import toy_folder

import pyllm
from pyllm.errors import InvalidOptionError

PROMPT = [5, 17, 99, 3, 64, 22, 8]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Iterator[pyllm.LanguageModel]:
    with pyllm.load(toy_folder(request.param), dtype="float32") as loaded:
        loaded.generation_config = {}
        yield loaded


@pytest.mark.filterwarnings("ignore")
def test_states_and_weights_are_those_of_transformers(model: pyllm.LanguageModel) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        output = theirs(torch.tensor([PROMPT]), output_hidden_states=True, output_attentions=True)
    for found, expected in (
        (model.hidden_states(PROMPT), output.hidden_states),
        (model.attentions(PROMPT), output.attentions),
    ):
        assert len(found) == len(expected)
        for ours, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, other[0].numpy(), rtol=0, atol=1e-4)


def test_a_long_text_comes_in_pieces_and_layers_can_be_chosen(model: pyllm.LanguageModel) -> None:
    ids = np.random.RandomState(2).randint(3, 120, size=90).tolist()
    whole = model.attentions(ids)
    with model._session() as engine:
        from pyllm.engine.captures import Collected, attention_names

        names = attention_names(model.program)
        collected = Collected(attentions=names)
        for _ in engine.score_rows(ids, chunk=33, capture=collected.capture):
            collected.read()
    for one, pieces in zip(whole, collected.weights(names), strict=True):
        tested_device.assert_same_numbers(one, pieces)
    np.testing.assert_allclose(whole[0].sum(axis=-1), 1, rtol=1e-5)
    last = model.hidden_states(ids, layers=[-1])
    assert len(last) == 1
    np.testing.assert_array_equal(last[0], model.hidden_states(ids)[-1])
    with pytest.raises(InvalidOptionError, match=r"layers must be from -3 to 2, got \[7\]"):
        model.hidden_states(ids, layers=[7])


def test_generate_returns_them_when_asked(model: pyllm.LanguageModel) -> None:
    result = model.generate(
        PROMPT, max_new_tokens=5, num_beams=3, num_return_sequences=2, output_hidden_states=[-1], output_attentions=True
    )
    plain = model.generate(PROMPT, max_new_tokens=5, num_beams=3, num_return_sequences=2)
    assert [s.token_ids for s in result.sequences] == [s.token_ids for s in plain.sequences]
    assert plain.sequences[0].hidden_states is None
    for sequence in result.sequences:
        read = [*PROMPT, *sequence.token_ids][:-1]
        assert sequence.hidden_states is not None
        assert sequence.attentions is not None
        np.testing.assert_array_equal(sequence.hidden_states[0], model.hidden_states(read, layers=[-1])[0])
        assert sequence.attentions[1].shape[1:] == (len(read), len(read))
    with pytest.raises(InvalidOptionError, match="True, False or a list of layers"):
        model.generate(PROMPT, max_new_tokens=2, output_attentions=3)
