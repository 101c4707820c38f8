"""Latency accounting: how long a detector takes from the arrival of its visit to durable products."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from nightstream.scheduler.events import FrameStatus


class LatencyLog:
    """Remember the latency of every finished detector: eight bytes each, so that a night stays small."""

    def __init__(self) -> None:
        self._seconds: dict[int, array] = {}

    def add(self, frames: Iterable[FrameStatus]) -> None:
        """Take the finished frames of a closed visit."""
        for frame in frames:
            if frame.status == "done":
                self._seconds.setdefault(frame.detector, array("d")).append(frame.latency_s)

    def quantile(self, fraction: float, detector: int | None = None) -> float:
        """Latency, s, that ``fraction`` of the detectors did not exceed; NaN before the first.

        The smallest value with at least that fraction at or below it, of one detector or of all.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in 0..1, got {fraction}")
        chosen = self._seconds.values() if detector is None else (self._seconds.get(detector, ()),)
        values = sorted(value for column in chosen for value in column)
        if not values:
            return float("nan")
        return values[max(0, -int(-fraction * len(values) // 1) - 1)]

    def __len__(self) -> int:
        return sum(len(column) for column in self._seconds.values())
