"""Train the default model of pyllm: a 3.8M-parameter GPT-2 on two public-domain texts.

Needs PyTorch and `tokenizers` (development only; pyllm itself uses neither).
Writes a Hugging Face folder (config.json, generation_config.json,
model.safetensors in bfloat16, tokenizer.json, tokenizer_config.json) and
loss.svg, and rewrites it at every evaluation so that an interrupted run leaves
a usable model behind:

    python examples/train_default_model.py war-and-peace.txt tinyshakespeare.txt \
        --out pyllm/assets/default-model --minutes 80

`--resume FOLDER` continues from such a folder: its weights and its tokenizer,
fresh optimizer state, half the peak rate, and, where the folder's README.md
holds a table of losses, rows that count on from it.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from default_model_export import export_model, load_weights, read_loss_table, write_loss_plot

END = "<|endoftext|>"
VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 2048, 256, 4, 4, 512


# ---------------------------------------------------------------- text


def novel_chapters(path):
    """Chapters of War and Peace, each paragraph unwrapped to one line."""
    text = Path(path).read_text(encoding="utf-8").replace("\r", "")
    start = re.search(r"\*\*\* ?START OF.*?\n", text)
    stop = re.search(r"\*\*\* ?END OF", text)
    text = text[start.end() if start else 0 : stop.start() if stop else len(text)]
    text = re.sub(r"^(BOOK [A-Z]+: .*|(FIRST|SECOND) EPILOGUE.*)$", "", text, flags=re.M)
    for chapter in re.split(r"^CHAPTER [IVXL]+ *$", text, flags=re.M):
        paragraphs = []
        for block in re.split(r"\n\s*\n", chapter):
            block = " ".join(block.split())
            # Translators' footnotes stand between paragraphs; they and their
            # marks would only teach the model to break off in mid-sentence.
            if not block or block.startswith("*"):
                continue
            block = re.sub(r" ?\*( ?\(\d+\))?", "", block)
            # A footnote splits the paragraph it stands in: rejoin the halves.
            if paragraphs and block[0].islower() and paragraphs[-1][-1] not in '.!?":':
                paragraphs[-1] += " " + block
            else:
                paragraphs.append(block)
        if paragraphs:
            yield "\n\n".join(paragraphs) + "\n"


def play_scenes(path, size=12000):
    """Shakespeare in blocks of about `size` characters, cut between speeches.

    Lines are verse, so their breaks stay.
    """
    block = ""
    for speech in Path(path).read_text(encoding="utf-8").strip().split("\n\n"):
        block += ("\n\n" if block else "") + speech.strip()
        if len(block) >= size:
            yield block + "\n"
            block = ""
    if block:
        yield block + "\n"


def split(documents, every=20):
    """Hold out every twentieth document, so that validation covers each whole text."""
    documents = list(documents)
    held = [d for i, d in enumerate(documents) if i % every == every // 2]
    return [d for i, d in enumerate(documents) if i % every != every // 2], held


def train_tokenizer(documents):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def encode(tokenizer, documents):
    """One token stream: every document starts and ends with <|endoftext|>."""
    end = tokenizer.token_to_id(END)
    ids = [end]
    for encoding in tokenizer.encode_batch(documents):
        ids += [*encoding.ids, end]
    return torch.tensor(ids)


# ---------------------------------------------------------------- model


class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.attn_proj = nn.Linear(WIDTH, WIDTH)
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.mlp_proj = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.attn_proj(mixed.transpose(1, 2).reshape(x.shape)))
        hidden = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.dropout(self.mlp_proj(hidden))


class GPT2(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.ln_f, self.heads = nn.LayerNorm(WIDTH), HEADS
        self.dropout = nn.Dropout(dropout)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                scale = (2 * LAYERS) ** -0.5 if "proj" in name else 1.0
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, ids):
        x = self.dropout(self.wte(ids) + self.wpe.weight[: ids.shape[1]])
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------- training


def random_batch(stream, batch, generator):
    starts = torch.randint(len(stream) - CONTEXT - 1, (batch,), generator=generator)
    windows = stream[starts[:, None] + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def evaluate(model, stream):
    """Mean loss per token over the stream in consecutive full windows."""
    model.eval()
    count = (len(stream) - 1) // CONTEXT
    ids = stream[: count * CONTEXT].view(count, CONTEXT)
    targets = stream[1 : count * CONTEXT + 1].view(count, CONTEXT)
    losses = [model.loss(i, t).item() * len(i) for i, t in zip(ids.split(8), targets.split(8), strict=True)]
    model.train()
    return sum(losses) / count


def optimizers(model, rate):
    """Muon for the matrices of the blocks, AdamW for tables, norms and biases."""
    matrices = [p for p in model.h.parameters() if p.dim() == 2]
    tables = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [
        torch.optim.Muon(matrices, lr=1.5 * rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


class Average:
    """Exponential moving average of the weights; its memory grows with the run."""

    def __init__(self, model, dropout):
        self.model, self.steps = GPT2(dropout), 0
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model, limit):
        self.steps += 1
        decay = min(limit, self.steps / (self.steps + 10))
        for mean, p in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(p, 1 - decay)


def rate_factor(progress, warmup=0.02):
    """Linear warm-up, then cosine to 3 % of the peak, by share of the time budget."""
    if progress < warmup:
        return (progress + 1e-4) / warmup
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def step(model, opts, ids, targets):
    loss = model.loss(ids, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)
    return loss.item()


def train(args, model, streams, rows, save):
    """Train until the time is up, adding a row to `rows` at each evaluation; return the averaged model."""
    generator = torch.Generator().manual_seed(args.seed)
    average, recent = Average(model, args.dropout), []
    before = rows[-1] if rows else {"minutes": 0, "steps": 0, "tokens": 0}
    opts = optimizers(model, args.peak_rate)
    groups = [(g, g["lr"]) for opt in opts for g in opt.param_groups]
    begin, budget = time.time(), 60 * args.minutes
    next_save = 60 * args.every
    while True:
        elapsed = time.time() - begin
        for group, peak in groups:
            group["lr"] = peak * rate_factor(min(1.0, elapsed / budget))
        recent.append(step(model, opts, *random_batch(streams["train"], args.batch, generator)))
        average.update(model, args.ema)
        elapsed = time.time() - begin
        if elapsed < min(next_save, budget):
            continue
        row = {
            "minutes": before["minutes"] + elapsed / 60,
            "steps": before["steps"] + average.steps,
            "tokens": before["tokens"] + average.steps * args.batch * CONTEXT,
            "train": sum(recent) / len(recent),
            "validation": evaluate(average.model, streams["validation"]),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
        save(average.model, rows)
        recent, next_save = [], next_save + 60 * args.every
        if elapsed >= budget:
            return average.model


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("novel", help="War and Peace, plain text")
    parser.add_argument("plays", help="Shakespeare, plain text")
    parser.add_argument("--out", default="pyllm/assets/default-model")
    parser.add_argument("--resume", metavar="FOLDER", type=Path, help="continue from a folder made earlier")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--every", type=float, default=5, help="minutes between evaluations")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--peak-rate", type=float, help="2e-3, or 1e-3 with --resume, unless given")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.peak_rate is None:
        args.peak_rate = 1e-3 if args.resume else 2e-3
    return args


def start(args, documents):
    """The tokenizer, the model to train and the rows of its earlier training, if any."""
    model = GPT2(args.dropout)
    if args.resume is None:
        return train_tokenizer(documents), model, []
    from tokenizers import Tokenizer

    model.load_state_dict(load_weights(args.resume / "model.safetensors"))
    return Tokenizer.from_file(str(args.resume / "tokenizer.json")), model, read_loss_table(args.resume / "README.md")


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    novel, novel_held = split(novel_chapters(args.novel))
    plays, plays_held = split(play_scenes(args.plays))
    tokenizer, model, rows = start(args, novel + plays)
    streams = {
        "train": encode(tokenizer, novel + plays),
        "validation": encode(tokenizer, novel_held + plays_held),
        "novel": encode(tokenizer, novel_held),
        "plays": encode(tokenizer, plays_held),
    }
    print({name: len(stream) for name, stream in streams.items()}, flush=True)

    def save(model, rows):
        export_model(model, tokenizer, END, out)
        write_loss_plot(rows, out / "loss.svg")

    model = train(args, model, streams, rows, save)
    # What ships is bfloat16: measure that, on both texts together and apart.
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    for name in ("validation", "novel", "plays"):
        print(f"bfloat16 {name} loss {evaluate(model, streams[name]):.4f}", flush=True)


if __name__ == "__main__":
    main()
