"""What the scheduler and its workers tell each other: small values that pickle. Pixels never travel; paths
do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """Everything that makes a `DetectorWorker`: which detector, with what, to where."""

    camera: str  # name, or path of its YAML file
    detector: int
    output_dir: str
    calibration_dir: str | None = None  # None: no calibrations are applied
    template_dir: str | None = None  # None: no difference is made
    config: Mapping[str, Any] = field(default_factory=dict)  # settings of `EngineConfig`: section, field: value
    device: str = "auto"
    reference: str | None = None  # catalogue of reference stars, used where there is no template
    forced_positions: str | None = None  # catalogue of positions to force photometry at
    steps_per_sigma: int | None = None  # rounding of the pixels on disk; None: lossless
    max_computing: int = 1  # jobs of one worker that compute at once


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorJob:
    """One detector of one visit, to be processed for the ``attempt``-th time."""

    visit: int
    detector: int
    path: str
    attempt: int = 1
    positions: str = ""  # file of the DIAObjects preloaded for it; empty for none


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorReport:
    """How one job ended."""

    visit: int
    detector: int
    path: str  # of the raw file
    status: str  # "done", "failed" or "missing" (there was no raw file)
    error: str = ""  # one line: what, and in which file, visit and detector
    output: str = ""  # the product file; of a failed job, one with the visit image alone, if that was made
    output_bytes: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)  # dia_sources, negative, forced_sources
    summary: Mapping[str, float] = field(default_factory=dict)  # of the detector's products
    timings_s: Mapping[str, float] = field(default_factory=dict)  # stage: seconds
    template: str = ""  # id of the template that was subtracted, empty for none
