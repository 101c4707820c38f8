"""When the stages of a detector began and ended, and how many cores they kept busy; the steps inside them too, if asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from typing import NamedTuple
from unittest.mock import patch

# Functions whose calls are steps of a stage, by the module that calls them. The engine knows nothing of it.
STEPS = {
    "nightstream.engine.isr": ("measure_overscan",),
    "nightstream.engine.characterize": (
        "fit_background", "find_cosmic_rays", "interpolate_masked", "detect", "select_psf_stars", "fit_psf", "validate_psf",
        "measure_sources", "register",
    ),
    "nightstream.engine.difference": (
        "warp", "flag_high_variance", "warp_psf", "choose_stars", "fit_kernel", "convolve_image", "subtract_planes",
        "fit_difference_background", "decorrelation_kernels", "decorrelate", "convolve_psf", "with_noise_correlation",
    ),
    "nightstream.engine.measure": ("detect", "fit_centroids", "fit_dipoles", "measured_fluxes", "pixel_flags"),
    "nightstream.io.products": ("write_exposure", "write_table", "write_cutouts"),
}  # fmt: skip


class Span(NamedTuple):
    """One stage, or one call of a step: seconds since its run began, and what all cores together spent."""

    name: str
    depth: int  # stages that were open around it
    start_s: float
    end_s: float
    core_s: float

    @property
    def clock_s(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


class Stopwatch:
    """Spans of every run, in the order in which they ended; waits for the device before it reads the clock."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.runs: list[list[Span]] = []
        self.synchronize = synchronize
        self._origin, self._depth = 0.0, 0

    def start_run(self) -> None:
        """What is timed from now on belongs to a new run."""
        self.runs.append([])
        self._origin = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.synchronize()
        start, busy = time.perf_counter() - self._origin, time.process_time()
        self._depth += 1
        yield
        self._depth -= 1
        self.synchronize()
        end = time.perf_counter() - self._origin
        self.runs[-1].append(Span(name, self._depth, start, end, time.process_time() - busy))


@contextmanager
def steps_timed(stopwatch: Stopwatch) -> Iterator[None]:
    """Time the calls of `STEPS` too: on a card each then waits for the one before, which costs a little."""
    with ExitStack() as stack:
        for module, names in STEPS.items():
            for name in names:
                function = getattr(import_module(module), name)
                stack.enter_context(patch(f"{module}.{name}", _timed(function, name.replace("_", " "), stopwatch)))
        yield


def _timed(function: Callable, name: str, stopwatch: Stopwatch) -> Callable:
    @wraps(function)
    def timed(*arguments, **options):
        with stopwatch(name):
            return function(*arguments, **options)

    return timed
