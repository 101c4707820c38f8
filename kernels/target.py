"""Which library an array belongs to, and how a hot loop is found, compiled and launched on it.

The array decides: NumPy runs on the CPU (Numba), CuPy on its GPU (the `.cu` kernel of the same name). Nothing is moved here.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from types import ModuleType
from typing import Any, NamedTuple

import numba
import numpy as np

# No fast-math and no contraction on either target: + - * / sqrt then agree bit for bit.
NUMBA_OPTIONS = {"cache": True, "nogil": True, "fastmath": False, "error_model": "numpy"}
NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
KEPT_BYTES = 2**30  # of freed memory that the process holds on to
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def array_module(*arrays) -> ModuleType:
    """Return the module, ``numpy`` or ``cupy``, that ``arrays`` belong to. Never imports CuPy by itself."""
    cupy = sys.modules.get("cupy")
    return cupy.get_array_module(*arrays) if cupy is not None else np


def scipy_module(xp: ModuleType, name: str) -> ModuleType:
    """Return ``scipy.<name>`` or ``cupyx.scipy.<name>`` (e.g. ``"ndimage"``, ``"fft"``) to go with ``xp``."""
    from importlib import import_module

    return import_module(f"scipy.{name}" if xp is np else f"cupyx.scipy.{name}")


class Launch(NamedTuple):
    """The plan of one kernel launch: blocks, threads a block, dynamic shared memory. The CPU ignores it."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int = 0

    @classmethod
    def over(cls, shape: tuple[int, ...], block: tuple[int, ...] = (32, 8)) -> Launch:
        """Cover ``shape`` (slowest axis first, as in ``array.shape``) with one thread an element.

        ``block`` is (x, y, z): its first number runs along the last axis of ``shape``.
        """
        extents = tuple(reversed(shape))
        block = block + (1,) * (len(extents) - len(block)) if len(block) < len(extents) else block[: len(extents)]
        return cls(tuple(-(-n // b) for n, b in zip(extents, block, strict=True)), block)


class HotLoop:
    """The twins of one hot loop: a Numba function and the CUDA kernel of the same name and arguments.

    Call it with a `Launch` and the kernel's arguments, outputs included: C-contiguous arrays and NumPy-typed scalars
    (``np.int32(ny)``), exactly as the ``extern "C" __global__`` function in ``kernels/cuda/<source>.cu`` takes them.
    """

    def __init__(self, function: Callable, source: str, *, parallel: bool) -> None:
        self.name = function.__name__
        self.source = source
        self.cpu = numba.njit(**NUMBA_OPTIONS, parallel=parallel)(function)
        functools.update_wrapper(self, function)

    def __call__(self, launch: Launch, *args) -> None:
        check_arguments(self.name, args)
        if 0 in launch.grid:
            return
        if _host_runner is not None:
            _host_runner(self, launch, args)
        elif array_module(*args) is np:
            self.cpu(*args)
        else:
            cuda_module(self.source).get_function(self.name)(launch.grid, launch.block, args, shared_mem=launch.shared_bytes)


def hot_loop(source: str, *, parallel: bool = True) -> Callable[[Callable], HotLoop]:
    """Decorate a Numba-compilable function as the CPU twin of the kernel of its name in ``kernels/cuda/<source>.cu``."""
    return lambda function: HotLoop(function, source, parallel=parallel)


def device_function(function: Callable) -> Callable:
    """Compile a small helper called from inside hot loops, with the project's one set of Numba options."""
    return numba.njit(**NUMBA_OPTIONS)(function)


def for_each(work: Callable[[Any], Any], parts: Sequence, xp: ModuleType) -> list:
    """Call ``work(part)`` for all ``parts`` and return what the calls return; they must not touch each other's output.

    On the CPU they are shared out among as many threads as Numba uses, the caller's one of them, since NumPy and SciPy let
    others run meanwhile; on a GPU they are queued one after the other. What a call raises, this raises; parts that were not
    begun by then are left.
    """
    threads = min(numba.get_num_threads(), len(parts)) if xp is np else 1
    _keep_freed_memory()
    if threads <= 1:
        return [work(part) for part in parts]
    left, results = deque(enumerate(parts)), [None] * len(parts)

    def take_and_work() -> None:
        while True:
            try:
                place, part = left.popleft()
            except IndexError:
                return
            try:
                results[place] = work(part)
            except BaseException:
                left.clear()
                raise

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(take_and_work) for _ in range(threads - 1)]
        take_and_work()
    for other in others:
        other.result()
    return results


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc take large arrays from memory that was freed before: by default every plane and every temporary array of
    some MB is new memory of the system, which costs as much as a transform of it. Nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def release_freed_memory() -> None:
    """Give freed memory back to the system, once set-up work that needed more than what follows is done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def chunks(count: int, size: int, xp: ModuleType) -> list[slice]:
    """Return slices that cover ``count`` elements: of ``size`` on the CPU, for its cache and its threads, one on a GPU."""
    size = size if xp is np else max(count, 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def check_arguments(name: str, args: tuple) -> None:
    """Raise TypeError unless every argument is a C-contiguous array or a NumPy scalar: the twins' common language."""
    for position, value in enumerate(args):
        if isinstance(value, np.generic):
            continue
        flags = getattr(value, "flags", None)
        if flags is None:
            raise TypeError(f"{name}: argument {position} is {type(value).__name__}, wanted an array or a NumPy scalar")
        if not flags.c_contiguous:
            raise TypeError(f"{name}: argument {position} of shape {value.shape} is not C-contiguous")


def cuda_source(source: str) -> str:
    """Return the text of ``kernels/cuda/<source>.cu``."""
    return (resources.files("nightstream.kernels.cuda") / f"{source}.cu").read_text()


@functools.cache
def cuda_module(source: str) -> Any:
    """Compile ``kernels/cuda/<source>.cu`` for the current GPU; once a process."""
    import cupy

    return cupy.RawModule(code=cuda_source(source), options=NVRTC_OPTIONS)


_host_runner: Callable[[HotLoop, Launch, tuple], None] | None = None


@contextmanager
def host_runner(run: Callable[[HotLoop, Launch, tuple], None]) -> Iterator[None]:
    """Within the context, hand every launch to ``run`` instead: how tests execute the `.cu` sources on the CPU."""
    global _host_runner
    previous, _host_runner = _host_runner, run
    try:
        yield
    finally:
        _host_runner = previous
