"""Runs unchanged ``.cu`` files on the CPU, for tests: `loader` builds them with ``cuda_cpu_shim.h``."""
