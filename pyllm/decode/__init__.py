"""Search: options, filters on logits, stopping rules and the policies that choose tokens. No models, no caches."""
