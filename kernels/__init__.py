"""Pure functions on arrays: one algorithm, one file. NumPy arrays run on the CPU, CuPy arrays on their GPU."""
