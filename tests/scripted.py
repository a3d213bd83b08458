"""A scripted model for the searches: logits are a table's row for the last two tokens. Also as a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.decode.options import GenerationOptions
from pyllm.decode.policy import Policy, make_policy


class Script:
    """Logits float32 [V] after `tokens`, of deviation `spread`; equal for equal last two tokens."""

    def __init__(self, vocab_size: int, seed: int, spread: float = 2.0) -> None:
        self.vocab_size = vocab_size
        random = np.random.RandomState(seed)
        self.table = (spread * random.standard_normal((vocab_size, vocab_size, vocab_size))).astype(np.float32)

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.table[tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]

    def policy(self, prompt: Sequence[int], **options: Any) -> Policy:
        return make_policy(prompt, GenerationOptions.build({}, options), vocab_size=self.vocab_size)


def drive(model: Any, *policies: Policy) -> None:
    """Runs the policies side by side to their ends, checking that live sequences are what the steps said."""
    live = [[list(policy.prompt_ids)] for policy in policies]
    while any(not policy.finished for policy in policies):
        for index, policy in enumerate(policies):
            if policy.finished:
                continue
            step = policy.advance(np.stack([model.after(tokens) for tokens in live[index]]))
            live[index] = [
                [*live[index][parent], token] for parent, token in zip(step.parents, step.tokens, strict=True)
            ]
            assert [policy.live_tokens(i) for i in range(policy.num_live)] == live[index]


def as_transformers_model(script: Script) -> Any:
    """The same script as a model that transformers' generate can drive."""
    import torch
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class ScriptModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = PretrainedConfig
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__(PretrainedConfig(vocab_size=script.vocab_size))
            self.table = torch.nn.Parameter(torch.tensor(script.table))

        def forward(self, input_ids: Any, **_: Any) -> Any:
            before = input_ids[:, -2] if input_ids.shape[1] > 1 else torch.zeros_like(input_ids[:, -1])
            return CausalLMOutput(logits=self.table[before, input_ids[:, -1]][:, None])

        def prepare_inputs_for_generation(self, input_ids: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": input_ids}

    return ScriptModel().eval()
