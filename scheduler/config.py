"""The scheduler's configuration. Frozen; every field says its unit and its effect."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nightstream.scheduler.policy import AdmissionPolicy


class SchedulerConfig(BaseModel):
    """Where and how much. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: Literal["ray", "local"] = "ray"  # Ray actors, or this process alone
    actors: int = Field(0, ge=0)  # workers; 0: as many as run well, at most one a detector
    threads_per_actor: int = Field(0, ge=0)  # OpenMP and Numba threads of a Ray actor; 0: its share of the cores
    num_gpus_per_actor: float | None = Field(None, ge=0)  # 0.5 puts two actors on a card; None: all cards, shared out
    max_in_flight: int = Field(2, ge=1)  # jobs handed to one worker and not yet answered; at least its lanes
    lanes: int = Field(1, ge=1)  # jobs of one worker under way at once: one computes, others' files travel; memory for each
    max_computing: int = Field(1, ge=1)  # of these, that compute at once: more than one may fill a card
    max_open_visits: int = Field(4, ge=1)  # visits under way at once
    retries: int = Field(2, ge=0)  # times a detector is done again after its worker died under it
    max_worker_deaths: int = Field(10, ge=1)  # deaths in a row after which a worker is given up
    job_timeout_s: float = Field(1800.0, gt=0)  # s; a Ray actor silent for so long over one job is replaced
    restart_timeout_s: float = Field(600.0, gt=0)  # s; a worker not back by then is given up
    address: str = "local"  # "local": a cluster of this machine alone; else that of a running one
    object_store_mib: int = Field(128, ge=80)  # MiB; only small records go through it
    verbose: bool = False  # show what Ray and the actors print

    def policy(self) -> AdmissionPolicy:
        """The part that the state machine needs."""
        # In this process a hung job cannot be ended, so there is no point in declaring its worker dead.
        is_local = self.executor == "local"
        return AdmissionPolicy(
            max_in_flight=max(self.max_in_flight, self.lanes),
            max_open_visits=self.max_open_visits,
            retries=self.retries,
            max_worker_deaths=self.max_worker_deaths,
            job_timeout_s=float("inf") if is_local else self.job_timeout_s,
            restart_timeout_s=float("inf") if is_local else self.restart_timeout_s,
        )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
