"""What the encoder families share: heads by `architectures`, and the layer with norms after its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..program.network import Network
from ..program.program import ActivationName
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Disentangled, Matrix, RelativeBias, Source
from .blocks import joined, matrix, vector
from .fields import Fields

# What the class of a checkpoint, architectures[0], ends in -> head of its network. BertForPreTraining is a masked-lm
# with one more head, which is left aside.
HEADS: dict[str, str | None] = {
    "Model": None,  # but LMHeadModel is a decoder
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# Tensors of encoders that no program reads: position numbers that old checkpoints hold, and (in a model without or with
# another head) heads and poolers. Families add to it.
IGNORED = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"(pooler|classifier|qa_outputs|logits_proj|summary|sequence_summary)(\..*)?",
)
MAX_LABELS = 1 << 20


@dataclass(frozen=True)
class Head:
    """The head of a checkpoint: one of Network.head's names or None, and how many outputs a row has (its own matter
    for masked-lm). kind: what architectures[0] ends in."""

    name: str | None
    outputs: int
    kind: str = "Model"


def head_from_fields(fields: Fields) -> Head:
    """The head that `architectures` and `id2label` of a config.json describe; no `architectures`: none."""
    listed = fields.raw("architectures")
    if listed is None or listed == []:
        return Head(None, 0)
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        fields.invalid(f"architectures must be a list of class names, got {listed!r:.80}")
        return Head(None, 0)
    kind = next((ending for ending in HEADS if listed[0].endswith(ending)), None)
    if kind is None or listed[0].endswith("LMHeadModel"):
        fields.unsupported(f"architectures {listed[0]!r:.80} (supported are classes ...{', ...'.join(HEADS)})")
        return Head(None, 0)
    name = HEADS[kind]
    return Head(name, 2 if name == "question-answering" else _labels(fields), kind)


def _labels(fields: Fields) -> int:
    """Classes of a classifier: as many as id2label has, or num_labels, or 2."""
    labels, number = fields.raw("id2label"), fields.integer("num_labels", 0, low=0, high=MAX_LABELS)
    if labels is None:
        return number or 2
    if not isinstance(labels, dict) or not labels or len(labels) > MAX_LABELS:
        fields.invalid(f"id2label must be an object of one to {MAX_LABELS} labels, got {labels!r:.80}")
        return 1
    if number and number != len(labels):
        fields.invalid(f"num_labels and id2label must agree, they have {number} and {len(labels)} labels")
    return len(labels)


def positions_from_fields(fields: Fields, offset: int) -> int:
    """Longest sequence: max_position_embeddings less the rows that position 0 comes after."""
    rows = fields.integer("max_position_embeddings")
    if 0 < rows <= offset:
        fields.invalid(f"max_position_embeddings must be more than {offset}, got {rows}")
        return 0
    return rows - offset


def refuse_decoders(fields: Fields) -> None:
    """Notes what turns an encoder's class into a decoder, or gives it other positions."""
    if fields.flag("is_decoder", False):
        fields.unsupported("is_decoder: attention to earlier tokens only")
    if fields.flag("add_cross_attention", False):
        fields.unsupported("add_cross_attention: attention to an encoder")
    fields.choice("position_embedding_type", "absolute", {"absolute": None})


@dataclass(frozen=True)
class LayerNames:
    """Checkpoint names of one layer's linears and norms, without `.weight`; qkv: query, key and value."""

    qkv: tuple[str, str, str]
    attn_out: str
    attn_norm: str
    ffn_up: str
    ffn_out: str
    ffn_norm: str


@dataclass(frozen=True)
class LayerShape:
    """What is equal in all layers of a model. bias: that of the attention scores, from the layer's index and its
    queries, keys and values [T, 3 * width]. scale: of queries times keys, None for the usual one."""

    width: int
    heads: int
    ffn: int
    activation: ActivationName
    eps: float
    bias: Callable[[int, Buffer], RelativeBias | Disentangled] | None = None
    scale: float | None = None


def post_norm_layer(r: Recorder, index: int, x: Buffer, names: LayerNames, s: LayerShape) -> Buffer:
    """[T, D]: attention and feed-forward, each followed by norm(x + block(x)) (Vaswani et al. 2017; BERT)."""
    head_dim = s.width // s.heads
    with r.layer(index):
        parts = [(name, s.width) for name in names.qkv]
        h = r.linear("qkv", x, joined("+".join(names.qkv), parts, s.width, bias=True))
        h = r.attention(
            "attn",
            h,
            num_heads=s.heads,
            num_kv_heads=s.heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if s.scale is None else s.scale,
            bias=s.bias(index, h) if s.bias else None,
        )
        h = r.linear("attn_out", h, matrix(names.attn_out, s.width, s.width, bias=True), residual=x)
        x = norm(r, "attn_norm", h, names.attn_norm, s.eps)
        h = r.linear("ffn_up", x, matrix(names.ffn_up, s.ffn, s.width, bias=True), s.activation)
        h = r.linear("ffn_out", h, matrix(names.ffn_out, s.width, s.ffn, bias=True), residual=x)
        return r.hidden(norm(r, "ffn_norm", h, names.ffn_norm, s.eps))


def norm(r: Recorder, name: str, x: Buffer, weights: str, eps: float) -> Buffer:
    """Layer norm with `weights`.weight and `weights`.bias."""
    return r.layer_norm(name, x, vector(f"{weights}.weight", x.cols), vector(f"{weights}.bias", x.cols), eps)


@dataclass(frozen=True)
class HeadNames:
    """Checkpoint names of a family's heads: those of masked-lm, then those of sequence-classification.

    masked-lm: decoder(norm(activation(dense(x)))) + bias; sequence-classification: classifier(activation(pooled(x))).
    """

    lm_dense: str
    lm_norm: str
    lm_decoder: str
    lm_bias: str
    pooled: str
    classifier: str


def vocabulary(
    words: str, rows: int, cols: int, head: Head, names: HeadNames, tied: bool, lm_bias: bool = True
) -> tuple[Matrix, Matrix, tuple[tuple[str, str], ...]]:
    """The embedding table [rows, cols], the masked-lm decoder, and the names that the decoder's tensors may have too.

    A tied decoder is the table, which has the decoder's bias then: embeddings ignore it.
    """
    source = Source(f"{words}.weight", (rows, cols))
    plain = Matrix(source.name, (rows, cols), (source,))
    if head.name != "masked-lm":
        return plain, plain, ()
    bias = (Source(names.lm_bias, (rows,)),) if lm_bias else ()
    decoder = f"{names.lm_decoder}.weight", f"{names.lm_decoder}.bias"
    aliases = ((names.lm_bias, decoder[1]),) if names.lm_bias != decoder[1] else ()
    if tied:
        table = Matrix(source.name, (rows, cols), (source,), bias)
        return table, table, ((source.name, decoder[0]), *aliases)
    return plain, Matrix(decoder[0], (rows, cols), (Source(decoder[0], (rows, cols)),), bias), aliases


@dataclass(frozen=True)
class HeadShape:
    """What heads need to know of a model: its eps, the activations before their last linear, the decoder's matrix."""

    eps: float
    lm_activation: ActivationName
    pooled_activation: ActivationName
    decoder: Matrix


def head_output(r: Recorder, x: Buffer, head: Head, names: HeadNames, s: HeadShape) -> Buffer:
    """[R, n] after `select`: what the network's head gives, or the last hidden state."""
    rows, width = r.select("rows", x), x.cols
    if head.name is None:
        return rows
    if head.name == "masked-lm":
        weight = matrix(names.lm_dense, s.decoder.shape[1], width, bias=True)
        h = r.linear("head_dense", rows, weight, s.lm_activation)
        return r.linear("logits", norm(r, "head_norm", h, names.lm_norm, s.eps), s.decoder)
    if head.name == "sequence-classification":
        h = r.linear("pooled", rows, matrix(names.pooled, width, width, bias=True), s.pooled_activation)
        return r.linear("logits", h, matrix(names.classifier, head.outputs, width, bias=True))
    last = "qa_outputs" if head.name == "question-answering" else "classifier"
    return r.linear("logits", rows, matrix(last, head.outputs, width, bias=True))


def encoder_network(r: Recorder, output: Buffer, head: Head, **options: Any) -> Network:
    """The network of one encoder program; options: as for Recorder.finish."""
    return Network(r.family, encode=r.finish(output, **options), head=head.name)


def without_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json, of a base model."""
    return {**config, "architectures": None}
