"""A stand-in for CuPy over NumPy memory that refuses what CuPy refuses: array programs meet it without a GPU.

Its arrays mix with Python numbers and NumPy scalars but not with NumPy arrays, and never turn into them by
themselves; reductions give 0-d arrays; kernels run as in `cudashim`, within a device's limits on grids. Only what
stands in `FUNCTIONS` is there: each was looked up in CuPy 14, arguments too. It computes what NumPy does, so results
have the same bits; it knows nothing of streams, memory or speed.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from importlib import resources
from types import ModuleType, SimpleNamespace

import numpy as np
import scipy.fft
import scipy.ndimage
from cudashim import loader

from nightstream.kernels import target

FUNCTIONS = {
    "cupy": """abs add arange arctan2 argmax argmin argsort array asarray ascontiguousarray atleast_1d bincount
        bitwise_and bitwise_or broadcast_to clip concatenate copyto cos cumsum degrees diag diagonal divide empty equal
        exp eye flatnonzero fmax full greater greater_equal hypot isfinite isin isnan less less_equal lexsort linspace
        log matmul max maximum mean median meshgrid minimum moveaxis multiply nan_to_num nanmean nanmedian nanstd
        negative nonzero not_equal ones ones_like pad power radians remainder repeat rint roll round searchsorted sign
        sin sinc sort sqrt stack subtract sum take_along_axis tensordot unique where xor zeros zeros_like""",
    "cupy.fft": "fftshift",
    "cupy.linalg": "cholesky eigh eigvalsh inv lstsq solve",
    "cupyx.scipy.fft": "fft ifft irfft irfft2 next_fast_len rfft rfft2",
    "cupyx.scipy.ndimage": """binary_closing binary_dilation label map_coordinates maximum_filter median_filter
        uniform_filter uniform_filter1d zoom""",
}
METHODS = "all any argmin astype clip conj copy max mean min ravel reshape squeeze std sum swapaxes transpose".split()
PROPERTIES = "T flags imag nbytes ndim real shape size dtype".split()
OPERATORS = "add sub mul truediv floordiv mod pow and or xor matmul lt le gt ge eq ne".split()
UPLOADS = ("array", "asarray", "ascontiguousarray")
DTYPES = "float32 float64 int8 uint8 int16 int32 int64 uint16 bool_ complex128".split()
MAX_GRID = (2**31 - 1, 65535, 65535)


class ndarray:  # noqa: N801, the name that CuPy has
    """An array that the host cannot touch but through `get`."""

    __slots__ = ("_memory",)
    __hash__ = None

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            return NotImplemented
        return getattr(CUPY, ufunc.__name__)(*inputs, **options)

    def __array_function__(self, function, types, args, options):
        raise TypeError(f"numpy.{function.__name__} of a CuPy array: call the function of its module")

    @property
    def __cuda_array_interface__(self):
        return {}

    def get(self, *, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        if out is None:
            return self._memory.copy()
        if (out.shape, out.dtype) != (self._memory.shape, self._memory.dtype):
            raise TypeError(f"{out.dtype}{out.shape} array cannot be obtained from {self._memory.dtype}{self._memory.shape}")
        out[...] = self._memory
        return out

    def __getitem__(self, key):
        return _wrap(self._memory[_unwrap(key)])

    def __setitem__(self, key, value):
        self._memory[_unwrap(key)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self._memory)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def __float__(self) -> float:
        return float(self._memory.item())

    def __int__(self) -> int:
        return int(self._memory.item())

    def __bool__(self) -> bool:
        return bool(self._memory)

    def __index__(self) -> int:
        return operator.index(self._memory.item())

    def __format__(self, spec: str) -> str:
        return format(self._memory.item(), spec)


def _wrap(value):
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        return ndarray(value)
    return tuple(map(_wrap, value)) if isinstance(value, tuple | list) else value


def _unwrap(value, *, may_upload: bool = False):
    if isinstance(value, ndarray):
        return value._memory
    if isinstance(value, np.ndarray) and not may_upload:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(value)(_unwrap(v, may_upload=may_upload) for v in value) if type(value) in (tuple, list) else value


def _method(name: str):
    def call(self, *args, **options):
        return _wrap(getattr(self._memory, name)(*map(_unwrap, args), **{k: _unwrap(v) for k, v in options.items()}))

    return call


def _operator(name: str):
    def apply(self, other):
        result = getattr(self._memory, name)(_unwrap(other))
        return result if result is NotImplemented else self if name.startswith("__i") else _wrap(result)

    return apply


def _fill_class() -> None:
    for name in METHODS:
        setattr(ndarray, name, _method(name))
    for name in PROPERTIES:
        setattr(ndarray, name, property(lambda self, name=name: _wrap_property(getattr(self._memory, name))))
    for name in ("__neg__", "__abs__", "__invert__"):
        setattr(ndarray, name, _method(name))
    for name in (f"__{prefix}{operation}__" for prefix in ("", "r", "i") for operation in OPERATORS):
        if hasattr(np.ndarray, name):
            setattr(ndarray, name, _operator(name))


def _wrap_property(value):
    return ndarray(value) if isinstance(value, np.ndarray) else value


def _function(name: str, function):
    def call(*args, **options):
        may_upload = name in UPLOADS
        _refuse(name, args, options)
        unwrapped = [_unwrap(v, may_upload=may_upload) for v in args]
        return _wrap(function(*unwrapped, **{k: _unwrap(v, may_upload=may_upload) for k, v in options.items()}))

    return call


def _refuse(name: str, args, options) -> None:
    """Raise what CuPy raises where it does less than NumPy or SciPy."""
    if name in ("sort", "argsort") and options.get("kind") not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    if name in ("lexsort", "searchsorted", "where", "lstsq", "inv", "label") and not isinstance(args[0], ndarray):
        raise TypeError(f"{name} wants a CuPy array, got {type(args[0])}")
    if name.startswith("binary_") and options.get("iterations", 1) != 1 and not options.get("brute_force"):
        raise NotImplementedError("only brute_force iteration has been implemented")


class RawModule:
    """The kernels of one source, on the CPU."""

    def __init__(self, *, code: str, options=()) -> None:
        folder = resources.files("nightstream.kernels.cuda")
        self._source = next(p.name[:-3] for p in folder.iterdir() if p.name.endswith(".cu") and p.read_text() == code)

    def get_function(self, name: str):
        def launch(grid, block, args, *, shared_mem=0):
            if any(n > limit for n, limit in zip(grid, MAX_GRID, strict=False)):
                raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: grid {grid} of {name}")
            kernels = loader.load(loader.cuda_path(self._source))
            kernels.launch(name, grid, block, tuple(map(_unwrap, args)), shared_bytes=shared_mem)

        return launch


def _modules() -> dict[str, ModuleType]:
    originals = {"cupy": np, "cupy.fft": np.fft, "cupy.linalg": np.linalg}
    originals |= {"cupyx.scipy.fft": scipy.fft, "cupyx.scipy.ndimage": scipy.ndimage}
    made = {name: ModuleType(name) for name in (*FUNCTIONS, "cupyx", "cupyx.scipy")}
    for module, names in FUNCTIONS.items():
        for name in names.split():
            if hasattr(originals[module], name):
                setattr(made[module], name, _function(name, getattr(originals[module], name)))
    return made


_fill_class()
MODULES = _modules()
CUPY = MODULES["cupy"]
CUPY.ndarray, CUPY.RawModule, CUPY.fft, CUPY.linalg = ndarray, RawModule, MODULES["cupy.fft"], MODULES["cupy.linalg"]
CUPY.get_array_module = lambda *arrays: CUPY if any(isinstance(a, ndarray) for a in arrays) else np
MODULES["cupyx"].empty_pinned = np.empty


class Stream(contextlib.nullcontext):
    """A stream that has always caught up."""

    def __init__(self, *, non_blocking: bool = False) -> None:
        super().__init__()

    def synchronize(self) -> None:
        pass


CUPY.cuda = SimpleNamespace(is_available=lambda: True, get_current_stream=Stream, Stream=Stream)
CUPY.fft.config = SimpleNamespace(get_plan_cache=lambda: SimpleNamespace(set_size=lambda size: None))
CUPY.nan, CUPY.inf, CUPY.pi = np.nan, np.inf, np.pi
for _dtype in DTYPES:
    setattr(CUPY, _dtype, getattr(np, _dtype))


@contextlib.contextmanager
def strict_cupy():
    """Within the context ``import cupy`` gives the stand-in."""
    before = {name: sys.modules.get(name) for name in MODULES}
    target.cuda_module.cache_clear()
    sys.modules.update(MODULES)
    try:
        yield
    finally:
        for name in MODULES:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module is not None})
        target.cuda_module.cache_clear()
