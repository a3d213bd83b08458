"""Small random networks recorded by hand that use every operation of the specification, and steps to run them by."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllm.program.batch import BLOCK_TOKENS, Batch, Capture, Runner, Summary, on_host
from pyllm.program.network import Network
from pyllm.program.program import NormSlice, Program
from pyllm.program.recorder import Recorder
from pyllm.program.tensors import Alibi, Buffer, Disentangled, Matrix, RelativeBias, Source, Vector

VOCAB, POSITIONS, D, H, K, E = 71, 220, 36, 4, 2, 12


class RandomTensors:
    """Every source of a network, random by its name; `dtype` as stored."""

    def __init__(self, network: Network) -> None:
        programs = network.programs.values()
        self._shapes = {source.name: source.shape for program in programs for source in program.sources()}
        self._constants = {name: array for program in programs for name, array in program.constants.items()}
        self.read: list[str] = []
        self.released: list[str] = []

    def tensor(self, name: str) -> np.ndarray:
        self.read.append(name)
        if name in self._constants:
            return self._constants[name]
        random = np.random.default_rng(zlib.crc32(name.encode()))
        values = random.uniform(-0.4, 0.4, self._shapes[name]).astype(np.float32)
        return values + 1 if "norm" in name and name.endswith("weight") else values

    def dtype(self, name: str) -> str:
        return "F32"

    def release(self, name: str) -> None:
        assert name not in self.released
        self.released.append(name)


def matrix(name: str, outputs: int, inputs: int, *, bias: bool = False, gated: bool = False) -> Matrix:
    if gated:
        sources = tuple(Source(f"{name}.{part}", (outputs // 2, inputs)) for part in ("gate", "up"))
    else:
        sources = (Source(f"{name}.weight", (outputs, inputs)),)
    biases = tuple(Source(f"{source.name}.bias", (1, source.shape[0])) for source in sources) if bias else ()
    return Matrix(name, (outputs, inputs), sources, biases, gated)


def vector(name: str, n: int, **options: Any) -> Vector:
    return Vector(name, (n,), Source(name, (n,)), **options)


def relative(name: str, reach: int, past_only: bool = False) -> RelativeBias:
    """Distances from -reach to reach (0), in buckets that are not in order."""
    count = reach + 1 if past_only else 2 * reach + 1
    return RelativeBias(Source(name, (7, H)), tuple(i * 5 % 7 for i in range(count)), -reach)


def decoder() -> Program:
    """Learned positions, rotation, heads normed by one weight and by their own, windows, caps and biases of scores, a
    matrix a head, scaled residuals, norms after a block, two mixtures of experts, a table that is also the head."""
    r = Recorder("decoder", vocab_size=VOCAB, max_positions=POSITIONS)
    table = matrix("table", VOCAB, D)
    x = r.embed("embed", table, positions=matrix("positions", POSITIONS + 2, D), position_offset=2, scale=1.5)
    rope = r.rotary("rope", [1.0, 0.3, 0.1, 0.03])
    options: list[dict[str, Any]] = [
        {"rope": rope, "window": 40, "softcap": 5.0},
        {"bias": Alibi((0.5, 0.25, 0.125, 0.0625))},
        {"rope": rope, "rope_interleaved": True, "bias": relative("past", 37, past_only=True)},
    ]
    for i, more in enumerate(options):
        with r.layer(i):
            h = r.rms_norm("norm", x, vector(f"{i}.norm.weight", D, offset=1.0, scale=0.7), 1e-5)
            qkv = r.linear("qkv", h, matrix(f"{i}.qkv", (H + 2 * K) * E, D, bias=i == 1))
            one = NormSlice(0, E, H, vector(f"{i}.qnorm.weight", E))
            own = NormSlice(H * E, E, K, vector(f"{i}.knorm.weight", K * E))
            qkv = r.head_norm("qknorm", qkv, "rms", [one, own], 1e-5)
            a = r.attention("attend", qkv, num_heads=H, num_kv_heads=K, head_dim=E, scale=0.3, **more)
            if i == 1:
                a = by_head(r, "heads", a, 2, 70, 20, begin=3)
            a = r.linear("out", a, matrix(f"{i}.out", D, a.cols), scale=0.6, residual=x if i else None)
            if i == 0:
                a = r.layer_norm("post", a, vector("post.norm.weight", D), vector("post.bias", D), 1e-5, residual=x)
            h = r.layer_norm("ffn_norm", a, vector(f"{i}.ffn_norm.weight", D), vector(f"{i}.ffn_norm.b", D), 1e-5)
            if i == 2:
                up = r.linear("up", h, matrix("up", 50, D, bias=True), "tanh", softcap=0.7, scale=1.3)
                x = r.linear("down", up, matrix("down", D, 50), residual=a)
            else:
                x = mixture(r, i, h, a)
    x = r.select("last", x)
    x = r.rms_norm("final", x, vector("final.norm.weight", D), 1e-5)
    return r.finish(r.linear("logits", x, table, softcap=3.0))


def by_head(
    r: Recorder, name: str, x: Buffer, heads: int, outputs: int, inputs: int, *, begin: int = 0, bias: bool = False
) -> Buffer:
    weights = [matrix(f"{name}.{i}", outputs, inputs, bias=bias) for i in range(heads)]
    return r.head_linear(name, x, weights, begin=begin)


def mixture(r: Recorder, layer: int, h: Buffer, residual: Buffer) -> Buffer:
    """Layer 0: top 2 of 5 and a wider shared expert; layer 1: top 3 of 4, normalised, with biases."""
    count, width, shared = (5, 20, layer == 0) if layer == 0 else (4, 70, False)
    router = r.linear("router", h, matrix(f"{layer}.router", count + shared, D))

    def pair(name: str, inner: int) -> tuple[Matrix, Matrix]:
        bias = layer == 1
        up = matrix(f"{layer}.{name}.gate_up", 2 * inner, D, gated=True, bias=bias)
        return up, matrix(f"{layer}.{name}.down", D, inner, bias=bias)

    return r.experts(
        "experts",
        h,
        router,
        [pair(f"expert{i}", width) for i in range(count)],
        top_k=2 + layer,
        activation="silu",
        normalize=layer == 1,
        shared=pair("shared", 100) if shared else None,
        residual=residual if layer == 0 else r.linear("skip", residual, matrix("skip", D, D), "relu"),
    )


def encoder_layer(r: Recorder, i: int, x: Buffer, **options: Any) -> Buffer:
    """Norms after the blocks, as BERT has them."""
    qkv = r.linear("qkv", x, matrix(f"e{i}.qkv", (H + 2 * K) * E, D, bias=True))
    a = r.attention("attend", qkv, num_heads=H, num_kv_heads=K, head_dim=E, scale=0.3, **options)
    a = r.linear("out", a, matrix(f"e{i}.out", D, H * E, bias=True), residual=x)
    a = r.layer_norm("norm", a, vector(f"e{i}.norm.weight", D), vector(f"e{i}.norm.bias", D), 1e-5)
    h = r.linear("up", a, matrix(f"e{i}.up", 70, D, bias=True), "gelu")
    h = r.linear("down", h, matrix(f"e{i}.down", D, 70), residual=a)
    return r.hidden(r.layer_norm("norm2", h, vector(f"e{i}.norm2.weight", D), vector(f"e{i}.norm2.bias", D), 1e-5))


def disentangled(r: Recorder, x: Buffer) -> Disentangled:
    """Distances from -17 to 17 in 9 places, counted from either end. By a matrix a head: of part of a panel, of a panel
    and part of another, of whole panels."""
    c2p = by_head(r, "c2p", x, H, 9, 9)
    wide = by_head(r, "wide", x, 2, 70, 16, begin=3, bias=True)
    p2c = by_head(r, "p2c", by_head(r, "whole", wide, 3, 128, 40, begin=5), H, 9, 90, begin=21)
    places = tuple(abs(i * 9 // 35) for i in range(35))
    return Disentangled(c2p, p2c, num_heads=H, span=9, first=-17, c2p_index=places, p2c_index=places[::-1])


def encoder_body(r: Recorder, table: Matrix) -> Buffer:
    x = r.embed("embed", table, types=matrix("types", 3, D))
    sinusoids = np.sin(np.arange(POSITIONS * D, dtype=np.float32).reshape(POSITIONS, D))
    positions = r.constant("sinusoids", sinusoids)
    p = r.embed_positions("positions", Matrix("sinusoids", (POSITIONS, D), (positions,)))
    x = r.linear("both", p, matrix("mix", D, D), residual=x)
    x = r.hidden(r.layer_norm("first", x, vector("first.norm.weight", D), vector("first.bias", D), 1e-5))
    options: list[dict[str, Any]] = [{"bias": relative("both", 45)}, {"window": 20}, {"softcap": 4.0}]
    for i, more in enumerate(options):
        with r.layer(i):
            if i == 1:
                more |= {"bias": disentangled(r, x)}
            x = encoder_layer(r, i, x, **more)
    return x


def encoder() -> Network:
    r = Recorder("encoder", vocab_size=VOCAB, max_positions=POSITIONS, causal=False)
    x = r.select("rows", encoder_body(r, matrix("table", VOCAB, D)))
    x = r.linear("pooled", x, matrix("pool", D, D), "tanh")
    out = r.linear("head", x, matrix("head", 5, D, bias=True))
    return Network("encoder", encode=r.finish(out), head="token-classification")


def encoder_decoder() -> Network:
    """The decoder's head is the encoder's table; cross-attention of other heads than its own attention."""
    table, heads, kv_heads, width = matrix("table", VOCAB, D), 6, 3, 8
    r = Recorder("seq2seq", vocab_size=VOCAB, max_positions=POSITIONS, causal=False)
    x = encoder_body(r, table)
    for i in range(2):
        with r.layer(i):
            kv = r.linear("cross_kv", x, matrix(f"d{i}.kv", 2 * kv_heads * width, D, bias=i == 0))
            r.store_cross(kv, i, num_kv_heads=kv_heads, head_dim=width)
    encode = r.finish(r.select("last", x))
    r = Recorder("seq2seq", vocab_size=VOCAB, max_positions=POSITIONS)
    x = r.embed("embed", table, positions=matrix("d.positions", POSITIONS, D))
    for i in range(2):
        with r.layer(i):
            h = r.layer_norm("norm", x, vector(f"d{i}.norm.weight", D), None, 1e-5)
            qkv = r.linear("qkv", h, matrix(f"d{i}.qkv", (H + 2 * K) * E, D))
            a = r.attention("attend", qkv, num_heads=H, num_kv_heads=K, head_dim=E, scale=0.3)
            x = r.linear("out", a, matrix(f"d{i}.out", D, H * E), residual=x)
            h = r.rms_norm("cross_norm", x, vector(f"d{i}.cross_norm.weight", D), 1e-5)
            q = r.linear("cross_q", h, matrix(f"d{i}.q", heads * width, D))
            c = r.cross_attention("cross", q, num_heads=heads, num_kv_heads=kv_heads, head_dim=width, scale=0.5)
            x = r.linear("cross_out", c, matrix(f"d{i}.cross_out", D, heads * width), residual=x)
    x = r.rms_norm("final", r.select("last", x), vector("d.final.norm.weight", D), 1e-5)
    return Network("seq2seq", step=r.finish(r.linear("logits", x, table)), encode=encode)


class Steps:
    """Texts by name through a runner, by hand: whole ones through `encode`, pieces through `step`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        kinds = ["step"] if "step" in runner.network.programs else []  # type: ignore[attr-defined]
        self.caches = {kind: runner.new_cache(kind) for kind in kinds}
        self.cross = runner.new_cross_cache() if runner.network.main.cross_layers else None  # type: ignore[attr-defined]
        self.blocks: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.sources: dict[str, tuple[list[int], int]] = {}

    def encode(self, texts: dict[str, Sequence[int]], capture: Capture | None = None) -> list[np.ndarray]:
        """The output rows of each text; keeps the sources of an encoder-decoder by name."""
        cache = self.runner.new_cache("encode")
        tables = [[cache.allocate() for _ in range(0, len(ids), BLOCK_TOKENS)] for ids in texts.values()]
        batch = _batch(list(texts.values()), [0] * len(texts), tables)
        batch.token_types = np.array([i % 3 for ids in texts.values() for i in range(len(ids))], np.int32)
        if self.cross is not None:
            for name, ids in texts.items():
                blocks = [self.cross.allocate() for _ in range(0, len(ids), BLOCK_TOKENS)]
                self.sources[name] = (blocks, len(ids))
            batch.cross_table = _table([self.sources[name][0] for name in texts])
            batch.cross_context = batch.context.copy()
        return self._run(batch, cache, "encode", capture)

    def step(
        self,
        texts: dict[str, Sequence[int]],
        sources: Sequence[str] = (),
        capture: Capture | None = None,
        summary: Summary | None = None,
    ) -> list[np.ndarray]:
        """Output rows of the next ids of some texts, whose sources are those of these names."""
        cache = self.caches["step"]
        first = [self.lengths.get(name, 0) for name in texts]
        for (name, ids), begin in zip(texts.items(), first, strict=True):
            blocks = self.blocks.setdefault(name, [])
            self.lengths[name] = begin + len(ids)
            while len(blocks) * BLOCK_TOKENS < self.lengths[name]:
                blocks.append(cache.allocate())
        batch = _batch(list(texts.values()), first, [self.blocks[name] for name in texts])
        if sources:
            batch.cross_table = _table([self.sources[name][0] for name in sources])
            batch.cross_context = np.array([self.sources[name][1] for name in sources], np.int32)
        return self._run(batch, cache, "step", capture, summary)

    def _run(
        self, batch: Batch, cache: Any, program: str, capture: Capture | None, summary: Summary | None = None
    ) -> list[np.ndarray]:
        asked = {} if summary is None else {"summary": summary}  # which not every runner can
        out = self.runner.run(batch, cache, program=program, cross=self.cross, capture=capture, **asked)
        return np.split(np.array(on_host(self.runner, out)), batch.starts[1:-1])


def _batch(texts: list[Sequence[int]], first: list[int], tables: list[list[int]]) -> Batch:
    positions = [begin + i for ids, begin in zip(texts, first, strict=True) for i in range(len(ids))]
    starts = np.cumsum([0, *(len(ids) for ids in texts)]).astype(np.int32)
    return Batch(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in texts]),
        positions=np.array(positions, np.int32),
        starts=starts,
        context=np.array([begin + len(ids) for ids, begin in zip(texts, first, strict=True)], np.int32),
        block_table=_table(tables),
        logit_rows=np.arange(len(positions), dtype=np.int32),
    )


def _table(rows: list[list[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), -7, np.int32)
    for row, blocks in zip(table, rows, strict=True):
        row[: len(blocks)] = blocks
    return table


def some_ids(count: int, seed: int) -> list[int]:
    return [(i * 31 + seed * 17 + i * i % 13) % VOCAB for i in range(count)]
