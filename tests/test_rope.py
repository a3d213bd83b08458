"""Rotary frequencies of every supported `rope_type` against transformers' own, at the sizes real models have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import toy_config

from pyllm.errors import InvalidConfigError
from pyllm.models import build_program
from pyllm.models.llama import Config

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 4096}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
VARIANTS: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192},
    LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    YARN,
    YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    YARN | {"attention_factor": 1.3},
    LONGROPE,
    LONGROPE | {"factor": 4.0},
    LONGROPE | {"attention_factor": 1.19},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head_dim", [12, 64, 80, 128])
@pytest.mark.parametrize("parameters", VARIANTS, ids=lambda parameters: parameters["rope_type"])
def test_frequencies_equal_those_of_transformers(parameters: dict[str, Any], head_dim: int) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = toy_config("llama") | {"max_position_embeddings": 131072, "head_dim": head_dim}
    del config["rope_theta"]
    config["rope_parameters"] = dict(parameters)
    if parameters["rope_type"] == "longrope":
        factors = {
            "short_factor": [1 + 0.01 * i for i in range(head_dim // 2)],
            "long_factor": [64.0] * (head_dim // 2),
        }
        config["rope_parameters"] |= factors
    rope = Config.from_dict(config).rope
    expected = LlamaRotaryEmbedding(transformers.AutoConfig.for_model(**config))
    # One unit in the last place: torch's float32 power is not always the nearest.
    np.testing.assert_array_max_ulp(np.float32(rope.inv_freq), expected.inv_freq.numpy(), maxulp=1)
    assert rope.scaling == pytest.approx(expected.attention_scaling, rel=1e-12)


def test_both_styles_of_configuration_are_one() -> None:
    config = toy_config("llama-rope-llama3")
    new = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = config["rope_scaling"] | {"rope_theta": config["rope_theta"]}
    assert Config.from_dict(new) == Config.from_dict(config)
    oldest = toy_config("llama-rope-linear-biases")
    assert "type" in oldest["rope_scaling"]
    newer = oldest | {"rope_scaling": {"rope_type": "linear", "factor": oldest["rope_scaling"]["factor"]}}
    assert Config.from_dict(newer) == Config.from_dict(oldest)


def test_yarn_carries_as_far_as_its_factor_says() -> None:
    config = toy_config("llama-rope-yarn") | {"max_position_embeddings": 24}
    assert Config.from_dict(config).rope.max_positions == 96


def test_longrope_carries_as_far_as_its_short_factors_hold() -> None:
    """transformers takes the long factors for every position of a longer sequence: its beginning would change."""
    factors = {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32} | factors
    config = {k: v for k, v in toy_config("llama").items() if k != "rope_theta"} | {"rope_parameters": parameters}
    assert build_program(config).max_positions == 32
    assert build_program(config | {"max_position_embeddings": 24}).max_positions == 24
    oldest = {"type": "su"} | {key: parameters[key] for key in factors}
    outside = {
        "rope_parameters": None,
        "rope_scaling": oldest,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 32,
    }
    assert build_program(config | outside) == build_program(config)
    for wrong in ({"short_factor": [1.0] * 5}, {"long_factor": "x"}, {"short_factor": [0.0] * 6}):
        with pytest.raises(InvalidConfigError, match=next(iter(wrong))):
            build_program(config | {"rope_parameters": parameters | wrong})
