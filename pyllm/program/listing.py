"""A program as text: a line an operation, `buffer [rows, cols] = op(inputs, weights)`, layers set apart by blank lines.

Used by print(program), golden tests and profiles. Layers that are wired alike read alike but for their index.
"""

from __future__ import annotations

from .program import Attention, Buffer, Embed, Linear, Matrix, Norm, Op, Program, Rotary, Select, Vector


def listing(program: Program) -> str:
    """The whole program; ends with a newline."""
    rows = [(op.out.name, _shape(op.out), _call(op)) for op in program.ops]
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


def _header(program: Program) -> str:
    heads = next(op.num_heads for op in program.ops if isinstance(op, Attention))
    shared = "" if heads == program.num_kv_heads else f" sharing {program.num_kv_heads} key/value heads"
    layers = f"{program.num_layers} layer{'s' if program.num_layers > 1 else ''}"
    return (
        f"{program.family}: {layers}, {heads} heads of {program.head_dim}{shared}, "
        f"vocabulary {program.vocab_size}, {program.max_positions} positions"
    )


def _call(op: Op) -> str:
    if isinstance(op, Embed):
        scale = "" if op.scale == 1.0 else f"{op.scale:.6g} * "
        text = f"embed({scale}{_matrix(op.table)}"
        if op.positions is not None:
            offset = f", offset {op.position_offset}" if op.position_offset else ""
            text += f" + {_matrix(op.positions)}{offset}"
        return text + ")"
    if isinstance(op, Rotary):
        scaling = "" if op.scaling == 1.0 else f", scaling {op.scaling:.6g}"
        return f"rotary({len(op.inv_freq)} frequencies {op.inv_freq[0]:.6g} to {op.inv_freq[-1]:.6g}{scaling})"
    if isinstance(op, Norm):
        return f"{op.kind}_norm({op.x.name}, {_vector(op.weight)}{' + bias' if op.bias else ''}, eps {op.eps:g})"
    if isinstance(op, Linear):
        return _linear(op)
    if isinstance(op, Attention):
        return _attention(op)
    assert isinstance(op, Select)
    return f"select({op.x.name})"


def _linear(op: Linear) -> str:
    text = f"linear({op.x.name}, {_matrix(op.weight)})"
    if op.activation != "none":
        text = f"{op.activation}({text})" if not op.weight.gated else f"{op.activation}_gate({text})"
    return text if op.residual is None else f"{op.residual.name} + {text}"


def _attention(op: Attention) -> str:
    heads = str(op.num_heads) if op.num_heads == op.num_kv_heads else f"{op.num_heads}/{op.num_kv_heads}"
    parts = [op.qkv.name, f"heads {heads} of {op.head_dim}", f"cache {op.layer}", f"scale {op.scale:.6g}"]
    if op.rope is not None:
        parts.append(f"rotated by {op.rope.name}{' in pairs' if op.rope_interleaved else ''}")
    if op.window:
        parts.append(f"window {op.window}")
    if op.softcap:
        parts.append(f"softcap {op.softcap:g}")
    return f"attention({', '.join(parts)})"


def _matrix(matrix: Matrix) -> str:
    transposed = ".T" if all(source.transposed for source in matrix.sources) else ""
    bias = " + bias" if matrix.bias else ""
    return f"{_joined([source.name for source in matrix.sources])}{transposed} {list(matrix.shape)}{bias}"


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
