"""Every field of every family's config.json, replaced by something it must not be: a network, or a typed error that
names the field; never another exception, never a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import FIXTURES

from pyllm.errors import InvalidConfigError, PyllmError, UnsupportedModelError
from pyllm.models import REGISTRY, build_network

STRANGE = (-1, 0, 7, 10**12, 2.5, 1e300, "x", "", True, [], [[]], {}, {"x": [1]}, None)
SIZES = ("hidden_size", "n_embd", "d_model", "dim", "vocab_size", "num_hidden_layers", "num_attention_heads", "n_head")
ACTIVATIONS = ("hidden_act", "activation_function", "activation", "hidden_activation", "dense_act_fn")


def toy_configs() -> dict[str, dict[str, Any]]:
    """One config.json of each model_type that has a toy checkpoint."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FIXTURES.glob("*/config.json")):
        config = json.loads(path.read_text())
        found.setdefault(config.get("model_type"), config)
    return {name: config for name, config in found.items() if name in REGISTRY}


CONFIGS = toy_configs()


def test_every_family_has_a_toy() -> None:
    assert set(REGISTRY) - set(CONFIGS) == set()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_strange_values_are_typed_errors(model_type: str) -> None:
    config = CONFIGS[model_type]
    messages: list[str] = []
    fields = [name for name in config if name not in ("model_type", "torch_dtype")]
    for name in fields:
        for value in STRANGE:
            try:
                build_network({**config, name: value})
            except PyllmError as error:  # noqa: PERF203
                messages.append(str(error))
    assert messages
    assert [message for message in messages if not message.startswith("[config.json]")] == []


@pytest.mark.parametrize("model_type", CONFIGS)
def test_sizes_and_activations_name_the_field_and_the_value(model_type: str) -> None:
    config = CONFIGS[model_type]
    if "text_config" in config:  # gemma3: the fields are one level deeper
        with pytest.raises(InvalidConfigError, match=r"hidden_size.*-3"):
            build_network({**config, "text_config": {**config["text_config"], "hidden_size": -3}})
        return
    seen = 0
    for name in SIZES:
        for value in (-3, 10**12):
            if name in config:
                seen += 1
                with pytest.raises(InvalidConfigError, match=rf"\b{name}\b.*{value}"):
                    build_network({**config, name: value})
    for name in ACTIVATIONS:
        if name in config:
            with pytest.raises(UnsupportedModelError, match=rf"{name}.*'sinc'"):
                build_network({**config, name: "sinc"})
    assert seen
