"""The decode loop and the face of a loaded model: sequences, batches, `LanguageModel`. No kernels, no search rules."""
