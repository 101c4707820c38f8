"""How much work may be under way, and how often lost work is tried again. Numbers and questions; no state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """Back-pressure and patience.

    Two jobs a worker keep it busy while the next one's message travels; more would only add latency, unless its lanes
    are more.
    """

    max_in_flight: int = 2  # jobs handed to one worker and not yet answered
    max_open_visits: int = 4  # visits with unfinished detectors
    retries: int = 2  # times a detector is started again after its worker died under it
    max_worker_deaths: int = 10  # deaths in a row, without one answer, after which a worker is given up
    job_timeout_s: float = float("inf")  # a worker silent for so long over one job counts as dead
    restart_timeout_s: float = float("inf")  # a worker not back after so long is given up

    def __post_init__(self) -> None:
        for name, least in (
            ("max_in_flight", 1),
            ("max_open_visits", 1),
            ("retries", 0),
            ("max_worker_deaths", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not (self.job_timeout_s > 0 and self.restart_timeout_s > 0):
            raise ValueError("timeouts must be positive")

    def can_admit(self, open_visits: int) -> bool:
        """May one more visit be opened beside ``open_visits``?"""
        return open_visits < self.max_open_visits

    def can_start(self, in_flight: int) -> bool:
        """May a worker with ``in_flight`` unanswered jobs get one more?"""
        return in_flight < self.max_in_flight

    def may_retry(self, strikes: int) -> bool:
        """May a detector that lost its worker ``strikes`` times be started again?"""
        return strikes <= self.retries
