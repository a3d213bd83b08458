"""Write a trained GPT-2 as a Hugging Face folder and read it back; draw its loss curve as an SVG.

Used by train_default_model.py.
"""

import json
import re
import struct
from pathlib import Path

import torch

# Attribute names of the training module -> names in GPT2LMHeadModel.
NAMES = {"attn_proj": "attn.c_proj", "c_attn": "attn.c_attn", "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}


def hf_tensors(model):
    """Tensors under GPT2LMHeadModel's names; Conv1D keeps weights as [in, out]."""
    tensors = {}
    for name, p in model.state_dict().items():
        module = name.split(".")[-2]
        name = name.replace(module, NAMES.get(module, module))
        if module in NAMES and name.endswith("weight"):
            p = p.T
        tensors["transformer." + name] = p.bfloat16().contiguous()
    return tensors


def write_safetensors(tensors, path):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors):
        raw = tensors[name].view(torch.int16).numpy().astype("<i2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    replace(path, struct.pack("<Q", len(text)) + text + data)


def load_weights(path):
    """The state of the training module in float32, from a file of `write_safetensors`."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    inner = {hf: own for own, hf in NAMES.items()}
    state = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        p = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.bfloat16).view(entry["shape"])
        block, module, kind = re.fullmatch(r"transformer\.(h\.\d+\.)?(.+)\.(\w+)", name).groups()
        if module in inner and kind == "weight":
            p = p.T
        state[f"{block or ''}{inner.get(module, module)}.{kind}"] = p.float().contiguous()
    return state


def read_loss_table(path):
    """Rows of the table in a README.md: minutes, steps, millions of tokens, training and validation loss."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and all(re.fullmatch(r"\d+(\.\d+)?", cell) for cell in cells):
            minutes, steps, millions, train, validation = map(float, cells)
            row = {"minutes": minutes, "steps": int(steps), "tokens": round(1e6 * millions)}
            rows.append({**row, "train": train, "validation": validation})
    return rows


def replace(path, content):
    """Write through a temporary name: a reader never sees half a file."""
    temporary = Path(str(path) + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path, value):
    replace(path, (json.dumps(value, indent=2) + "\n").encode())


def model_config(model, end_id):
    vocab, width = model.wte.weight.shape
    context = model.wpe.weight.shape[0]
    dropout = model.dropout.p
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "n_embd": width,
        "n_head": model.heads,
        "n_inner": None,
        "n_layer": len(model.h),
        "n_positions": context,
        "n_ctx": context,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab,
    }


def export_model(model, tokenizer, end, out):
    end_id = tokenizer.token_to_id(end)
    write_safetensors(hf_tensors(model), out / "model.safetensors")
    write_json(out / "config.json", model_config(model, end_id))
    write_json(
        out / "generation_config.json",
        {"bos_token_id": end_id, "eos_token_id": end_id, "do_sample": True, "temperature": 0.7, "top_k": 40},
    )
    replace(out / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "bos_token": end,
            "eos_token": end,
            "unk_token": end,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.wpe.weight.shape[0],
        },
    )


def write_loss_plot(rows, path, width=640, height=360):
    """Training and validation loss against millions of tokens seen."""
    left, right, top, bottom = 50, 20, 20, 45
    last = max(r["tokens"] for r in rows) / 1e6
    values = [r[k] for r in rows for k in ("train", "validation")]
    low, high = int(min(values) * 2) / 2, int(max(values) * 2 + 1) / 2

    def x(tokens):
        return left + (width - left - right) * tokens / last

    def y(loss):
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#444">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i in range(int((high - low) * 2) + 1):
        level = low + i / 2
        parts.append(
            f'<path d="M{left} {y(level):.1f}H{width - right}" stroke="#ddd"/>'
            f'<text x="{left - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level}</text>'
        )
    for i in range(6):
        tokens = last * i / 5
        parts.append(f'<text x="{x(tokens):.1f}" y="{height - 25}" text-anchor="middle">{tokens:.1f}</text>')
    for i, (key, colour) in enumerate((("train", "#1f77b4"), ("validation", "#d62728"))):
        points = " ".join(f"{x(r['tokens'] / 1e6):.1f},{y(r[key]):.1f}" for r in rows)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{width - right - 130}" y="{top + 16 + 16 * i}" '
            f'fill="{colour}">{key}</text>'
        )
    parts.append(
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">'
        "tokens seen (millions); loss in nats per token</text></svg>"
    )
    replace(path, "\n".join(parts).encode() + b"\n")
