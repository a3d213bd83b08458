"""Makes tests/fixtures/: toy checkpoints with random weights, and what Hugging Face transformers computes from them.

    python tests/make_fixtures.py            everything but group beams (transformers 5, torch)
    python tests/make_fixtures.py NAME...    the named models only
    python tests/make_fixtures.py --groups   group beam search only: transformers 4.53 is the last line with it built in

The format is described in tests/fixtures/README.md. Every token choice is recorded in float32 and confirmed in float64:
a case whose choice rests on rounding stops the script instead of making a flaky test.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from fixture_cases import beam_options, filter_options, plain_options, sampling_options
from safetensors.torch import load_file, save_file
from toy_models import CONFIGS, SEARCH_MODELS, STORED_DTYPE, VOCAB_SIZE
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from pyllm.models import build_program

FIXTURES = Path(__file__).parent / "fixtures"

Model = Any
Case = dict[str, Any]


# Parts of the names of matrices whose outputs are added to the residual stream.
TO_RESIDUAL = ("c_proj", "o_proj", "out_proj", "down_proj", "fc_out", "fc2", "w2", "dense_4h_to_h", "attention.dense")


def random_model(name: str) -> Model:
    """A float32 model whose logits have a deviation of 1 to 3; every weight is exact in the stored type."""
    config = AutoConfig.for_model(**copy.deepcopy(CONFIGS[name]))  # transformers fills in what it is given
    config._experts_implementation = "eager"  # the default one computes in no float64
    model = AutoModelForCausalLM.from_config(config).eval().float()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                unit = float(parameter.any())  # Gemma's norms multiply by 1 + weight, and begin with zeros
                value = 0.3 * noise if key.endswith("bias") else unit + 0.2 * noise
            elif id(parameter) in embeddings:
                value = 0.4 * noise
            else:
                inputs = parameter.shape[0 if id(parameter) in transposed else -1]
                gain = 2.5 if any(part in key for part in TO_RESIDUAL) else 1.4
                value = gain * noise / inputs**0.5  # outweighs the token's own embedding
            parameter.copy_(value.to(getattr(torch, STORED_DTYPE[name])).float())
    return model


def stored_tensors(model: Model) -> dict[str, torch.Tensor]:
    """What save_pretrained writes, by the names that it writes: a tied head is left out."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def write_checkpoint(name: str, model: Model) -> None:
    """config.json, generation_config.json, model.safetensors. "gpt2" has no `transformer.` before its names."""
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[name] | {"torch_dtype": STORED_DTYPE[name]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
    stored = getattr(torch, STORED_DTYPE[name])
    tensors = {key: tensor.to(stored).contiguous() for key, tensor in stored_tensors(model).items()}
    if name == "gpt2":  # as the Hub's own gpt2 stores it
        tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def prompts(name: str) -> list[list[int]]:
    """Prompts of 1, 7, 20 and 40 ids (the last crosses a 32-token block and every sliding window)."""
    random = np.random.RandomState(zlib.crc32(b"prompts " + name.encode()))
    return [random.randint(3, 128, size=n).tolist() for n in (1, 7, 20, 40)]


def record_logits(name: str, model: Model) -> None:
    arrays: dict[str, np.ndarray] = {}
    one, seven, _, forty = prompts(name)
    for index, prompt in enumerate((one, seven, forty)):
        with torch.no_grad():
            arrays[f"prompt_{index}"] = np.array(prompt, np.int32)
            arrays[f"logits_{index}"] = model(torch.tensor([prompt])).logits[0].numpy()
    np.savez_compressed(FIXTURES / name / "logits.npz", **arrays)


def new_tokens(sequence: list[int], prompt: list[int], eos: int | list[int] | None) -> list[int]:
    """What was generated: without the prompt, and without the padding after the end token."""
    ends = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    generated = sequence[len(prompt) :]
    for index, token in enumerate(generated):
        if token in ends:
            return generated[: index + 1]
    return generated


def generate(model: Model, prompt: list[int], options: dict[str, Any]) -> Case:
    """One call of transformers' generate with nothing but `options` set (no generation_config.json)."""
    model.generation_config = GenerationConfig()
    keep_scores = model.dtype == torch.float32  # group beam search can keep no others
    config = GenerationConfig(**{"pad_token_id": 0} | options, return_dict_in_generate=True, output_scores=keep_scores)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens = [new_tokens(s, prompt, options.get("eos_token_id")) for s in output.sequences.tolist()]
    scores = output.sequences_scores.tolist() if keep_scores and options.get("num_beams", 1) > 1 else None
    return {"prompt": prompt, "options": options, "token_ids": tokens, "scores": scores}


def record_case(model: Model, model64: Model, label: str, prompt: list[int], options: dict[str, Any]) -> Case:
    case, exact = generate(model, prompt, options), generate(model64, prompt, options)
    if case["token_ids"] != exact["token_ids"]:
        raise SystemExit(f"{label}: float32 and float64 disagree, choose another prompt or seed")
    return {"name": label, **case}


def likely_ends(model: Model, prompt: list[int]) -> list[int]:
    """Tokens that hypotheses meet in their middle: as eos_token_id they end some beams early and others never."""
    free = generate(model, prompt, {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 14})
    counts = Counter(token for tokens in free["token_ids"] for token in set(tokens[3:11]) - set(tokens[:3]))
    return [token for token, _ in counts.most_common(3)]


def record_generation(name: str, model: Model) -> None:
    model64 = random_model(name).double()
    cases = []
    for index, prompt in enumerate(prompts(name)):
        room = build_program(CONFIGS[name]).max_positions - len(prompt)
        cases.append(record_case(model, model64, f"greedy {index}", prompt, {"max_new_tokens": min(20, room)}))
    if name in SEARCH_MODELS:
        cases += search_cases(name, model, model64)
    else:
        options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 14}
        cases.append(record_case(model, model64, "beams, no end token", prompts(name)[1], options))
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    header = json.dumps({"transformers": transformers.__version__})[:-1]
    (FIXTURES / name / "generation.json").write_text(f'{header}, "cases": [\n  {lines}\n]}}\n')


def search_cases(name: str, model: Model, model64: Model) -> list[Case]:
    cases = []
    choices = prompts(name)
    for index, (label, options) in enumerate(beam_options([0])):
        prompt = choices[1 + index % 2]
        ends = likely_ends(model, prompt)
        if "eos_token_id" in options:
            options["eos_token_id"] = ends if isinstance(options["eos_token_id"], list) else ends[0]
        if name != "gpt2" and options["num_beams"] in (2, 8) and index % 3:
            continue  # the whole grid once is enough
        cases.append(record_case(model, model64, label, prompt, options))
    prompt = choices[1]
    free = generate(model, prompt, {"max_new_tokens": 12})["token_ids"][0]
    for label, options in filter_options(likely_ends(model, prompt), free, len(prompt)):
        for beams in (1, 3):
            if beams > 1 and isinstance(options.get("forced_eos_token_id"), list):
                continue  # forced tokens have equal scores, and torch.topk leaves the order of equals open
            full = {"num_beams": beams, "max_new_tokens": 14} | options
            cases.append(record_case(model, model64, f"{label}, beams {beams}", prompt, full))
    forced = {"forced_bos_token_id": 17, "begin_suppress_tokens": free[:2], "max_new_tokens": 8}
    for beams in (1, 3):  # bos is forced (and the suppression moves on by one) only after a prompt of one token
        label = f"forced_bos_token_id, beams {beams}"
        cases.append(record_case(model, model64, label, choices[0], forced | {"num_beams": beams}))
    return cases


def record_filters() -> None:
    """fixtures/filters: rows of logits, the ids before them, and each filter's result."""
    model = random_model("gpt2")
    random = np.random.RandomState(20)
    ids = random.randint(20, 28, size=(6, 32))
    logits = (3 * random.standard_normal((6, VOCAB_SIZE))).astype(np.float32)
    arrays, cases = {"ids": ids.astype(np.int32), "logits": logits}, []
    for options in sampling_options() + plain_options():
        prompt_length = 32 if "begin_suppress_tokens" in options else 24
        config = GenerationConfig(**options)
        model._prepare_special_tokens(config, device="cpu")
        processors = model._get_logits_processor(config, input_ids_seq_length=prompt_length, device="cpu")
        arrays[f"case_{len(cases)}"] = processors(torch.tensor(ids), torch.tensor(logits)).numpy()
        cases.append({"options": options, "prompt_length": prompt_length})
    folder = FIXTURES / "filters"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "filters.npz", **arrays)
    (folder / "cases.json").write_text("[\n  " + ",\n  ".join(json.dumps(case) for case in cases) + "\n]\n")


def record_scores() -> None:
    """fixtures/gpt2/scores.npz: output_logits (raw) and output_scores (filtered) of one greedy text."""
    model, prompt = random_model("gpt2"), prompts("gpt2")[1]
    model.generation_config = GenerationConfig()
    options = {"max_new_tokens": 8, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 0}
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **keep)
    arrays = {"prompt": np.array(prompt, np.int32), "token_ids": output.sequences[0, len(prompt) :].numpy()}
    arrays |= {"logits": torch.cat(output.logits).numpy(), "scores": torch.cat(output.scores).numpy()}
    np.savez_compressed(FIXTURES / "gpt2" / "scores.npz", **arrays, options=np.array(json.dumps(options)))


def record_groups() -> None:
    """fixtures/<model>/group_beams.json, in the form of generation.json."""
    for name in ("gpt2", "llama"):
        model = random_model(name)
        model64 = random_model(name).double()
        cases = []
        for index, prompt in enumerate(prompts(name)[1:3]):
            ends = likely_ends(model, prompt)
            for beams, groups, penalty in ((4, 2, 0.5), (4, 4, 1.0), (6, 3, 0.2), (6, 2, 2.0), (8, 4, 0.7)):
                for early in (True, False, "never"):
                    options = {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty}
                    options |= {"early_stopping": early, "num_return_sequences": beams if index else 2}
                    options |= {"max_new_tokens": 10, "eos_token_id": ends[0], "pad_token_id": 0}
                    label = f"groups {beams}/{groups} {penalty} {early}"
                    cases.append(record_case(model, model64, label, prompt, options))
            extra = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "num_beams": 4}
            extra |= {"num_beam_groups": 2, "diversity_penalty": 0.8, "max_new_tokens": 10, "eos_token_id": ends}
            extra |= {"pad_token_id": 0}  # what an ended group chooses, for the diversity of the others
            cases.append(record_case(model, model64, "groups with filters", prompt, extra))
        lines = ",\n  ".join(json.dumps(case) for case in cases)
        header = json.dumps({"transformers": transformers.__version__})[:-1]
        (FIXTURES / name / "group_beams.json").write_text(f'{header}, "cases": [\n  {lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to record (default: all, and the filters)")
    parser.add_argument("--groups", action="store_true", help="record group beam search only")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    if arguments.groups:
        record_groups()
        return
    for name in arguments.names or CONFIGS:
        model = random_model(name)
        write_checkpoint(name, model)
        record_logits(name, model)
        record_generation(name, model)
    if not arguments.names:
        record_filters()
        record_scores()


if __name__ == "__main__":
    main()
