"""Devices that run programs: `cpu` (the C++ core), `cuda` (an NVIDIA GPU), `reference` (NumPy in float64)."""
