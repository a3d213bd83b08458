"""Beam search with its scores, beside diverse beams: python examples/beams.py "Your prompt"."""

import sys

import pyllm

model = pyllm.load(pyllm.default_model())
prompt = sys.argv[1] if len(sys.argv) > 1 else "Natasha looked at"
beams = {"max_new_tokens": 20, "do_sample": False, "num_beams": 4, "num_return_sequences": 4}
for title, extra in (("beam search", {}), ("diverse beams", {"num_beam_groups": 4, "diversity_penalty": 1.0})):
    print(title)
    for sequence in model.generate(prompt, **beams, **extra).sequences:
        print(f"  {sequence.score:8.4f}  {sequence.text!r}")
