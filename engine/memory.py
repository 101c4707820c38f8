"""Where a detector's planes live: the host, or one GPU. Moving values between the two happens here and nowhere else.

On a GPU every thread that works on a detector has a *lane*: a stream of its own, so that one detector's pixels travel
while another's are worked on. Memory, host's and device's, comes from CuPy's pools: after the first detectors of a lane
nothing is allocated any more. Host arrays that travel are page-locked, which is what makes a copy run by itself.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from nightstream.errors import DeviceError

Device = Literal["auto", "cpu", "gpu"]
FFT_PLANS = 64  # kept for every lane; CuPy's 16 are fewer than a detector needs, and plans made anew allocate

_lane = threading.local()  # the stream of each thread, for all detectors that it works on


def resolve_device(device: Device) -> Literal["cpu", "gpu"]:
    """Turn ``"auto"`` into ``"gpu"`` where a card works, else ``"cpu"``. Resolved once, at start.

    Raises DeviceError if ``"gpu"`` was asked for and no card works; nothing falls back silently.
    """
    if device == "cpu":
        return "cpu"
    problem = gpu_problem()
    if problem is None:
        return "gpu"
    if device == "gpu":
        raise DeviceError(f"a GPU was asked for, but {problem}")
    return "cpu"


def gpu_problem() -> str | None:
    """Say why no card can be used, or None if one can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed (pip install 'nightstream[cuda13-wheels]')"
    if not cupy.cuda.is_available():
        return "CuPy sees no device"
    try:
        total = float(cupy.arange(3, dtype=np.float32).sum())
    except Exception as error:  # a broken driver shows itself in many ways
        return f"the device fails: {type(error).__name__}: {error}"
    return None if total == 3.0 else "the device computes wrong sums"


class DetectorMemory:
    """Moves values to and from one device, and knows how many bytes are resident there.

    Values are the engine's frozen dataclasses, dicts, tuples and arrays; everything that is not an array stays as it is.
    """

    def __init__(self, device: Device = "cpu") -> None:
        self.device = resolve_device(device)
        self.resident_bytes = 0

    def keep(self, value: Any) -> Any:
        """Move ``value`` to the device for the lifetime of the detector (calibrations, template) and count its bytes. All
        lanes may use it at once."""
        moved = self.upload(value)
        self.synchronize()
        self.resident_bytes += count_bytes(moved)
        return moved

    def upload(self, value: Any) -> Any:
        """Return ``value`` with every array on this device. Page-locked arrays travel while the caller goes on, and must not
        change until the device has caught up."""
        if self.device == "cpu":
            return value
        import cupy

        return _map_arrays(value, cupy.asarray)

    def download(self, value: Any) -> Any:
        """Return ``value`` with every array on the host; waits until all have come."""
        if self.device == "cpu":
            return value
        fetched = _map_arrays(value, self._fetch)
        self.synchronize()
        return fetched

    def _fetch(self, array: Any) -> np.ndarray:
        """Return an array that will have the values once the lane has caught up."""
        return (
            array if isinstance(array, np.ndarray) else array.get(out=self.host_array(array.shape, array.dtype), blocking=False)
        )

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return a host array, not filled, that can travel to the device without a copy on the way."""
        if self.device == "cpu" or 0 in shape:
            return np.empty(shape, dtype)
        import cupyx

        return cupyx.empty_pinned(shape, dtype)

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Within the context this thread's work on the device goes to its own stream, in its order, beside other threads'."""
        if self.device == "cpu":
            yield
            return
        import cupy

        if not hasattr(_lane, "stream"):
            _lane.stream = cupy.cuda.Stream(non_blocking=True)
            cupy.fft.config.get_plan_cache().set_size(FFT_PLANS)
        with _lane.stream:
            yield

    def synchronize(self) -> None:
        """Wait until the device has finished all that this thread's lane was given."""
        if self.device == "gpu":
            import cupy

            cupy.cuda.get_current_stream().synchronize()


def to_host(array: Any) -> np.ndarray:
    """Return ``array`` as a NumPy array; a NumPy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else array.get()


def count_bytes(value: Any) -> int:
    """Return the bytes of all arrays inside ``value``."""
    total = 0

    def add(array):
        nonlocal total
        total += array.nbytes
        return array

    _map_arrays(value, add)
    return total


def _map_arrays(value: Any, convert) -> Any:
    if hasattr(value, "__array_interface__") or hasattr(value, "__cuda_array_interface__"):
        return value if isinstance(value, np.generic) else convert(value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: _map_arrays(getattr(value, f.name), convert) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {key: _map_arrays(item, convert) for key, item in value.items()}
    return tuple(_map_arrays(item, convert) for item in value) if type(value) is tuple else value
