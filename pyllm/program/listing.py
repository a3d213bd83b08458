"""A program as text: a line an operation, `buffer [rows, cols] = op(inputs, weights)`, layers set apart by blank lines.

Used by print(program), golden tests and profiles. Layers that are wired alike read alike but for their index.
"""

from __future__ import annotations

from dataclasses import replace

from .program import (
    Attention,
    BufferOp,
    CrossAttention,
    Embed,
    Experts,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    Op,
    Program,
    Rotary,
    Select,
    StoreCross,
)
from .tensors import Alibi, Buffer, Disentangled, Matrix, RelativeBias, Vector


def listing(program: Program) -> str:
    """The whole program; ends with a newline."""
    rows = [_row(op) for op in program.ops]
    names = max(len(name) for name, _, _ in rows)
    shapes = max(len(shape) for _, shape, _ in rows)
    lines = [_header(program)]
    previous: str | None = None
    for name, shape, call in rows:
        if _layer_of(name) != previous:
            lines.append("")
        previous = _layer_of(name)
        lines.append(f"{name:<{names}}  {shape:<{shapes}} = {call}")
    return "\n".join(lines) + "\n"


def op_name(op: Op) -> str:
    """Of the buffer that it writes; the cross cache stands where the others have theirs."""
    if not isinstance(op, StoreCross):
        return op.out.name
    layer = _layer_of(op.kv.name)
    return f"{layer}.cross" if layer else "cross"


def _row(op: Op) -> tuple[str, str, str]:
    """(name, shape, call)"""
    if isinstance(op, StoreCross):
        return op_name(op), "", f"store({op.kv.name}, cross cache {op.layer})"
    return op_name(op), _shape(op.out), _call(op)


def _header(program: Program) -> str:
    heads = next(op.num_heads for op in program.ops if isinstance(op, Attention))
    shared = "" if heads == program.num_kv_heads else f" sharing {program.num_kv_heads} key/value heads"
    count = sum(isinstance(op, Attention) for op in program.ops)
    layers = f"{count} layer{'s' if count > 1 else ''}"
    return (
        f"{program.family}: {layers}, {heads} heads of {program.head_dim}{shared}, "
        f"vocabulary {program.vocab_size}, {program.max_positions} positions"
    )


def _call(op: BufferOp) -> str:
    if isinstance(op, Embed):
        return _embed(op)
    if isinstance(op, Rotary):
        scaling = "" if op.scaling == 1.0 else f", scaling {op.scaling:.6g}"
        return f"rotary({len(op.inv_freq)} frequencies {op.inv_freq[0]:.6g} to {op.inv_freq[-1]:.6g}{scaling})"
    if isinstance(op, Norm):
        text = f"{op.kind}_norm({op.x.name}, {_vector(op.weight)}{' + bias' if op.bias else ''}, eps {op.eps:g})"
        return text if op.residual is None else f"{op.residual.name} + {text}"
    if isinstance(op, HeadNorm):
        return _head_norm(op)
    if isinstance(op, Linear):
        return _linear(op)
    if isinstance(op, HeadLinear):
        start = f" from {op.begin}" if op.begin else ""
        return f"head_linear({op.x.name}{start}, {len(op.weights)} x {_matrix(op.weights[0])})"
    if isinstance(op, Experts):
        return _experts(op)
    if isinstance(op, Attention):
        return _attention(op)
    if isinstance(op, CrossAttention):
        heads = _heads(op.num_heads, op.num_kv_heads)
        return f"attention({op.q.name}, heads {heads} of {op.head_dim}, cross cache {op.layer}, scale {op.scale:.6g})"
    assert isinstance(op, Select)
    return f"select({op.x.name})"


def _embed(op: Embed) -> str:
    offset = f", offset {op.position_offset}" if op.position_offset else ""
    if op.index == "positions":
        return f"embed(positions, {_matrix(op.table)}{offset})"
    scale = "" if op.scale == 1.0 else f"{op.scale:.6g} * "
    text = f"embed({scale}{_matrix(replace(op.table, bias=()))}"
    if op.positions is not None:
        text += f" + {_matrix(op.positions)}{offset}"
    if op.types is not None:
        text += f" + types {_matrix(op.types)}"
    return text + ")"


def _head_norm(op: HeadNorm) -> str:
    parts = [
        f"{part.count} x {part.width} from {part.begin} {_vector(part.weight)}{' + bias' if part.bias else ''}"
        for part in op.slices
    ]
    return f"{op.kind}_norm({op.x.name}, {', '.join(parts)}, eps {op.eps:g})"


def _linear(op: Linear) -> str:
    text = f"linear({op.x.name}, {_matrix(op.weight)})"
    if op.activation != "none":
        text = f"{op.activation}({text})" if not op.weight.gated else f"{op.activation}_gate({text})"
    if op.softcap:
        text = f"softcap({text}, {op.softcap:g})"
    if op.scale != 1.0:
        text = f"{op.scale:.6g} * {text}"
    return text if op.residual is None else f"{op.residual.name} + {text}"


def _experts(op: Experts) -> str:
    weights = f"{len(op.gate_up)} x {_matrix(op.gate_up[0])}, {_matrix(op.down[0])}"
    how = f"top {op.top_k} by softmax({op.router.name}){' normalised' if op.normalize else ''}"
    text = f"{op.activation}_experts({op.x.name}, {how}, {weights}"
    if op.shared is not None:
        text += f", shared {_matrix(op.shared[0])}, {_matrix(op.shared[1])}"
    return f"{text})" if op.residual is None else f"{op.residual.name} + {text})"


def _heads(num_heads: int, num_kv_heads: int) -> str:
    return str(num_heads) if num_heads == num_kv_heads else f"{num_heads}/{num_kv_heads}"


def _attention(op: Attention) -> str:
    where = f"cache {op.layer}" if op.causal else "both ways"
    heads = _heads(op.num_heads, op.num_kv_heads)
    parts = [op.qkv.name, f"heads {heads} of {op.head_dim}", where, f"scale {op.scale:.6g}"]
    if op.rope is not None:
        parts.append(f"rotated by {op.rope.name}{' in pairs' if op.rope_interleaved else ''}")
    if op.window:
        parts.append(f"window {op.window}")
    if op.softcap:
        parts.append(f"softcap {op.softcap:g}")
    if isinstance(op.bias, Alibi):
        parts.append(f"bias by distance, slopes {op.bias.slopes[0]:.6g} to {op.bias.slopes[-1]:.6g}")
    if isinstance(op.bias, Disentangled):
        names = [buffer.name for buffer in (op.bias.c2p, op.bias.p2c) if buffer is not None]
        parts.append(f"bias by content and distance {', '.join(names)}")
    if isinstance(op.bias, RelativeBias):
        parts.append(f"bias by distance {op.bias.source.name} {list(op.bias.source.shape)}")
    return f"attention({', '.join(parts)})"


def _matrix(matrix: Matrix) -> str:
    transposed = ".T" if all(source.transposed for source in matrix.sources) else ""
    bias = " + bias" if matrix.bias else ""
    names = list(dict.fromkeys(source.name for source in matrix.sources))
    rows = " rearranged" if len(matrix.sources) > len(names) else ""
    return f"{_joined(names)}{transposed}{rows} {list(matrix.shape)}{bias}"


def _joined(names: list[str]) -> str:
    """a.q_proj.weight, a.k_proj.weight -> a.{q_proj, k_proj}.weight"""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    start = _shared(parts)
    end = _shared([part[start:][::-1] for part in parts])
    middle = ", ".join(".".join(part[start : len(part) - end]) for part in parts)
    return ".".join([*parts[0][:start], "{" + middle + "}", *parts[0][len(parts[0]) - end :]])


def _shared(parts: list[list[str]]) -> int:
    """How many leading elements all lists share."""
    count = 0
    for elements in zip(*parts, strict=False):
        if len(set(elements)) > 1:
            break
        count += 1
    return count


def _vector(vector: Vector) -> str:
    offset = f" + {vector.offset:g}" if vector.offset else ""
    return f"{vector.source.name} [{vector.shape[0]}]{offset}"


def _shape(buffer: Buffer) -> str:
    return f"[{buffer.rows}, {buffer.cols}]"


def _layer_of(name: str) -> str:
    return name.split(".")[0] if name.startswith("layer") and "." in name else ""
