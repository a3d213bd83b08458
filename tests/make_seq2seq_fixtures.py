"""Makes the encoder-decoder folders of tests/fixtures/: toy checkpoints, and what Hugging Face transformers computes.

    python tests/make_seq2seq_fixtures.py [NAME...]      (transformers 5, torch)

The format is described in tests/fixtures/README.md. Token choices are recorded in float32 and confirmed in float64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from toy_seq2seq import CONFIGS, GENERATING, GENERATION, SEARCH_MODELS, SEEDS, STORED_DTYPE
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, GenerationConfig

FIXTURES = Path(__file__).parent / "fixtures"
# Gains by parts of the names. Small biases, norms of both signs and sharp attention keep texts from standing still.
GAINS = {"q_proj": 1.7, "k_proj": 1.7, "out_proj": 0.5, ".q.": 0.5, ".wo.": 2.5}

Model = Any
Case = dict[str, Any]


def random_model(name: str) -> Model:
    """A float32 model whose logits have a deviation of 1 to 3; every weight is exact in the stored type."""
    kind = AutoModelForSeq2SeqLM if name in GENERATING else AutoModelForSequenceClassification
    model = kind.from_config(AutoConfig.for_model(**CONFIGS[name])).eval().float()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEEDS.get(name, 0))
    tied_t5 = getattr(model.config, "scale_decoder_outputs", False)  # logits divided by sqrt(d_model)
    stored = getattr(torch, STORED_DTYPE[name])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if not parameter.requires_grad:
                continue  # sinusoids
            if parameter.ndim == 1:
                sign = torch.sign(torch.randn(parameter.shape, generator=generator))
                value = 0.1 * noise if key.endswith("bias") else sign * (1 + 0.2 * noise)
            elif id(parameter) in embeddings:
                value = (1.5 if tied_t5 or "relative" in key else 0.4) * noise
            else:
                gain = next((gain for part, gain in GAINS.items() if part in key), 1.4)
                value = gain * noise / parameter.shape[-1] ** 0.5
            parameter.copy_(value.to(stored).float())
        if hasattr(model, "final_logits_bias"):
            noise = torch.randn(model.final_logits_bias.shape, generator=generator)
            model.final_logits_bias.copy_((0.3 * noise).to(stored).float())
    return model


def write_checkpoint(name: str, model: Model, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors with what save_pretrained writes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[name] | {"torch_dtype": STORED_DTYPE[name]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    generation = {key: config[key] for key in names if config.get(key) is not None} | GENERATION.get(name, {})
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tensors = load_file(Path(saved) / "model.safetensors")
    stored = getattr(torch, STORED_DTYPE[name])
    computed = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}  # not for rounding
    tensors = {key: tensor.to(stored).contiguous() for key, tensor in tensors.items() if key not in computed}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def pairs(name: str) -> list[tuple[list[int], list[int]]]:
    """(source, decoder ids): 1 and 7, 7 and 1, 20 and 20, 40 and 40 ids. Sources end in the end token."""
    config = CONFIGS[name]
    random = np.random.RandomState(zlib.crc32(b"pairs " + name.encode()))
    found = []
    for source, target in ((1, 7), (7, 1), (20, 20), (40, 40)):
        ids = random.randint(3, min(config["vocab_size"] - 3, 128), size=source - 1).tolist()
        decoder = random.randint(3, 128, size=target - 1).tolist()
        found.append(([*ids, config["eos_token_id"]], [config["decoder_start_token_id"], *decoder]))
    return found


def record_logits(name: str, model: Model) -> None:
    arrays: dict[str, np.ndarray] = {}
    for index, (source, decoder) in enumerate(pairs(name)):
        arrays[f"source_{index}"] = np.array(source, np.int32)
        arrays[f"decoder_{index}"] = np.array(decoder, np.int32)
        with torch.no_grad():
            if name in GENERATING:
                output = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([decoder]))
                arrays[f"logits_{index}"] = output.logits[0].numpy()
                arrays[f"encoded_{index}"] = output.encoder_last_hidden_state[0].numpy()
            else:
                arrays[f"logits_{index}"] = model(input_ids=torch.tensor([source])).logits[0].numpy()
    np.savez_compressed(FIXTURES / name / "logits.npz", **arrays)


def generated(sequence: list[int], eos: int | list[int] | None) -> list[int]:
    """Without the start token and the padding after the end token."""
    ends = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    tokens = sequence[1:]
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


def generate(model: Model, source: list[int], options: dict[str, Any]) -> Case:
    """One call of transformers' generate with nothing but `options` set (no generation_config.json)."""
    model.generation_config = GenerationConfig()
    config = GenerationConfig(**options, return_dict_in_generate=True, output_scores=True)
    ids = torch.tensor([source])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens = [generated(sequence, options.get("eos_token_id")) for sequence in output.sequences.tolist()]
    scores = output.sequences_scores.tolist() if options.get("num_beams", 1) > 1 else None
    return {"source": source, "options": options, "token_ids": tokens, "scores": scores}


def record_case(model: Model, model64: Model, label: str, source: list[int], options: dict[str, Any]) -> Case:
    case, exact = generate(model, source, options), generate(model64, source, options)
    if case["token_ids"] != exact["token_ids"]:
        raise SystemExit(f"{label}: float32 and float64 disagree, choose another source or seed")
    return {"name": label, **case}


def likely_ends(model: Model, source: list[int], base: dict[str, Any]) -> list[int]:
    """Tokens that hypotheses meet in their middle: as eos_token_id they end some beams early and others never."""
    free = generate(model, source, base | {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 14})
    counts = Counter(token for tokens in free["token_ids"] for token in set(tokens[3:11]) - set(tokens[:3]))
    found = [token for token, _ in counts.most_common(3)]
    if len(found) < 3:
        raise SystemExit(f"source of {len(source)}: the text stands still, choose another seed")
    return found


def record_generation(name: str, model: Model) -> None:
    model64 = random_model(name).double()
    config = CONFIGS[name]
    base = {"decoder_start_token_id": config["decoder_start_token_id"], "pad_token_id": config["pad_token_id"]}
    sources = [source for source, _ in pairs(name)]
    cases = [record_case(model, model64, "greedy", sources[2], base | {"max_new_tokens": 20})]
    four = base | {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 14}
    cases.append(record_case(model, model64, "4 beams, no end token", sources[2], four))
    if name in SEARCH_MODELS:
        for index, source in enumerate(sources):
            label = f"greedy, source of {len(source)}"
            cases.append(record_case(model, model64, label, source, base | {"max_new_tokens": 40 if index else 12}))
        for index, source in enumerate(sources[1:]):
            ends = likely_ends(model, source, base)
            free = generate(model, source, base | {"max_new_tokens": 12})["token_ids"][0]
            for label, options in searches(base["pad_token_id"], ends, free)[index::3]:
                cases.append(record_case(model, model64, label, source, base | options))
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    header = json.dumps({"transformers": transformers.__version__})[:-1]
    (FIXTURES / name / "generation.json").write_text(f'{header}, "cases": [\n  {lines}\n]}}\n')


def searches(pad: int, ends: list[int], free: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """What the families' own generation_config.json files ask for; tokens are taken from the free text, to bite."""
    end: dict[str, Any] = {"eos_token_id": ends[0], "max_new_tokens": 14}
    summary = {"forced_eos_token_id": ends[0], "no_repeat_ngram_size": 3, "length_penalty": 2.0, "early_stopping": True}
    return [
        ("4 beams", end | {"num_beams": 4}),
        ("4 beams, all returned", end | {"num_beams": 4, "num_return_sequences": 4}),
        ("forced_bos_token_id", {"forced_bos_token_id": 77, "max_new_tokens": 10}),
        ("forced_bos_token_id, 4 beams", end | {"forced_bos_token_id": 77, "num_beams": 4}),
        ("padding forbidden, 4 beams", end | {"bad_words_ids": [[pad], [free[1]]], "num_beams": 4}),
        (
            "padding forbidden, renormalised",
            end | {"bad_words_ids": [[pad]], "num_beams": 6, "renormalize_logits": True},
        ),
        ("summary", end | summary | {"num_beams": 4, "min_length": 8, "forced_bos_token_id": free[0]}),
        ("min_length", end | {"min_length": 9, "num_beams": 4}),
        ("length_penalty 0.6", end | {"length_penalty": 0.6, "num_beams": 5, "num_return_sequences": 3}),
        ("length_penalty 2.0", end | {"length_penalty": 2.0, "num_beams": 4, "early_stopping": True}),
        ("early_stopping never", end | {"length_penalty": 1.5, "num_beams": 4, "early_stopping": "never"}),
        ("no_repeat_ngram_size, greedy", {"no_repeat_ngram_size": 2, "max_new_tokens": 20}),
        ("encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": 1, "num_beams": 3, "max_new_tokens": 12}),
        ("encoder_repetition_penalty", {"encoder_repetition_penalty": 1.4, "num_beams": 2, "max_new_tokens": 12}),
        ("repetition_penalty", {"repetition_penalty": 1.3, "max_new_tokens": 16}),
        ("forced_eos_token_id", {"forced_eos_token_id": 9, "num_beams": 3, "eos_token_id": 9, "max_length": 11}),
        ("begin_suppress_tokens", end | {"begin_suppress_tokens": free[:2], "num_beams": 2}),
        ("three end tokens", {"eos_token_id": ends, "num_beams": 4, "max_new_tokens": 14}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to record (default: all)")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in parser.parse_args().names or CONFIGS:
        model = random_model(name)
        write_checkpoint(name, model, FIXTURES / name)
        record_logits(name, model)
        if name in GENERATING:
            record_generation(name, model)
        print(name, f"deviation of the logits {np.load(FIXTURES / name / 'logits.npz')['logits_3'].std():.2f}")


if __name__ == "__main__":
    main()
