"""Streams a continuation from the embedded default model: python examples/stream.py "Your prompt"."""

import sys

import pyllm

model = pyllm.load(pyllm.default_model())
prompt = sys.argv[1] if len(sys.argv) > 1 else "The old prince"
print(prompt, end="")
for piece in model.stream(prompt, max_new_tokens=100, do_sample=True, temperature=0.8, seed=1):
    print(piece, end="", flush=True)
print()
