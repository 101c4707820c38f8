"""The `target` fixture: the same claim tested on Numba, on the `.cu` sources run by the CPU, and on a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from cudashim import loader


class Target:
    """Where a test runs. `array` brings a NumPy array there, `host` brings a result back."""

    name = "numba"

    def running(self):
        """Return the context in which hot loops go to this target."""
        return nullcontext()

    def array(self, values, dtype=None):
        return np.array(values, dtype=dtype)

    def host(self, array) -> np.ndarray:
        return np.asarray(array)


class HostCudaTarget(Target):
    """The production ``.cu`` files, compiled by g++ and run on the CPU."""

    name = "host-cuda"

    def running(self):
        return loader.host_cuda()


class CudaTarget(Target):
    """A real GPU, through CuPy."""

    name = "cuda"

    def array(self, values, dtype=None):
        import cupy

        return cupy.array(values, dtype=dtype)

    def host(self, array) -> np.ndarray:
        import cupy

        return cupy.asnumpy(array)


def _make_target(name: str) -> Target:
    if name == "numba":
        return Target()
    if name == "host-cuda":
        if not loader.has_compiler():
            pytest.skip("g++ is absent, so the .cu sources cannot run on the CPU")
        return HostCudaTarget()
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return CudaTarget()


@pytest.fixture(params=["numba", "host-cuda", pytest.param("cuda", marks=pytest.mark.gpu)])
def target(request) -> Target:
    """Each target in turn; skipped, with the reason, where it is absent."""
    return _make_target(request.param)
