"""The `target` fixture: the same claim tested on Numba, on the `.cu` sources run by the CPU, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from cudashim import loader
from strict_cupy import ndarray, strict_cupy


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
    """The production ``.cu`` files, compiled by g++ and run on the CPU, on arrays as strict as CuPy's."""

    name = "host-cuda"

    def running(self):
        return strict_cupy()

    def array(self, values, dtype=None):
        return ndarray(np.array(values, dtype=dtype))

    def host(self, array) -> np.ndarray:
        return array.get() if isinstance(array, ndarray) else np.asarray(array)


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
def target(request) -> Iterator[Target]:
    """Each target in turn, running; skipped, with the reason, where it is absent."""
    made = _make_target(request.param)
    with made.running():
        yield made


@pytest.fixture(scope="session")
def small_survey(tmp_path_factory):
    """A simulated survey with calibrations and templates (`small_survey.SmallSurvey`), not to be changed."""
    from small_survey import build_survey

    return build_survey(tmp_path_factory.mktemp("small_survey"))


@pytest.fixture
def one_thread():
    """Run Numba on one thread: small frames are not worth the start of more."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray of two fake GPUs for all tests of the session."""
    ray = pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray refuses more fake GPUs than it lists
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the actors find fake_hosts
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=128 * 2**20,
    )
    yield ray
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server of the session's own (`postgres_server.PostgresServer`)."""
    from postgres_server import running_server

    with running_server() as server:
        yield server
