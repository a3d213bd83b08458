"""Run in an environment that has only the wheel: the README's example, on whatever CPU this is."""

import os
import sys

import pyllm
from pyllm import _C, pipeline

expected = os.environ.get("EXPECT_ISA")
if expected and _C.isa() != expected:
    sys.exit(f"expected the {expected} kernels, got {_C.isa()}")
generator = pipeline("text-generation", model=str(pyllm.default_model()))
text = generator("The quick brown fox jumps over the lazy", max_length=50, num_return_sequences=3)
assert len(text) == 3, text
assert all(t["generated_text"].startswith("The quick brown fox") for t in text), text
model = pyllm.load(pyllm.default_model())
result = model.generate("The prince", max_new_tokens=12, num_beams=4, do_sample=False)
assert result.text, result
assert result.score < 0, result
for module in ("torch", "transformers"):
    assert module not in sys.modules
print(f"{_C.isa()}: {text[0]['generated_text']!r}")
