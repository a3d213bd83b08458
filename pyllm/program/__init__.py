"""The recorded network: data types, recorder, listing, and the float64 NumPy meaning of every op."""
