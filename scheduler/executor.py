"""What runs the workers, seen from the scheduler: one small protocol, and the three things an executor can
say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nightstream.scheduler.messages import DetectorJob, DetectorReport, WorkerSetup

if TYPE_CHECKING:
    from nightstream.scheduler.config import SchedulerConfig

Setups = tuple[WorkerSetup, ...]  # the detectors that share one worker


class Host(Protocol):
    """What an executor runs: `nightstream.scheduler.worker.WorkerHost`, or a test's stand-in."""

    def process(self, job: DetectorJob) -> DetectorReport:
        """Process one job; raising means that this host is broken."""
        ...


MakeHost = Callable[[Setups], Host]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A worker answered a job."""

    worker: int
    job: DetectorJob
    report: DetectorReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A worker is gone, with all its unanswered jobs. Said once until it is `Ready` again or a restart
    fails."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A worker that was restarted answers."""

    worker: int


Outcome = Reported | Died | Ready


class Executor(Protocol):
    """Runs workers and their jobs. Each worker works its jobs off in the order of `submit`."""

    def slots(self) -> int:
        """How many workers run well side by side here."""
        ...

    def start(self, workers: Mapping[int, Setups]) -> None:
        """Make the workers. Called once."""
        ...

    def submit(self, worker: int, job: DetectorJob) -> None:
        """Hand a job to a worker; never blocks for long."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return what happened since the last call; wait up to ``timeout_s`` for something if nothing did."""
        ...

    def restart(self, worker: int) -> None:
        """End the worker if it still runs and make it anew; `Ready` or `Died` follows."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


def make_worker_host(setups: Setups) -> Host:
    """The real host of the detectors in ``setups``."""
    from nightstream.scheduler.worker import WorkerHost

    return WorkerHost(setups)


def make_executor(config: SchedulerConfig) -> Executor:
    """The executor that the configuration names."""
    if config.executor == "ray":
        from nightstream.scheduler.ray_executor import RayExecutor

        return RayExecutor(config)
    from nightstream.scheduler.local_executor import LocalExecutor, ThreadExecutor

    return ThreadExecutor(config.actors, lanes=config.lanes) if config.actors else LocalExecutor()


def place_setups(setups: Mapping[int, WorkerSetup], workers: int) -> dict[int, Setups]:
    """Deal detectors to workers: round robin, and over again where there are more workers than detectors."""
    if not setups or workers < 1:
        raise ValueError(f"need at least one detector and one worker, got {len(setups)} and {workers}")
    detectors = sorted(setups)
    if workers >= len(detectors):
        return {worker: (setups[detectors[worker % len(detectors)]],) for worker in range(workers)}
    return {worker: tuple(setups[d] for d in detectors[worker::workers]) for worker in range(workers)}
