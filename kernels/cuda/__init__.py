"""CUDA C++ twins of the Numba hot loops; one file per kernel module, read by `nightstream.kernels.target`."""
