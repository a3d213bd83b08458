"""Devices that run programs: `cpu` (the C++ core) and `reference` (NumPy in float64)."""
