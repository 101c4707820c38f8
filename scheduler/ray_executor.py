"""Ray: one actor for each worker. Paths and small records go through Ray; pixels stay in the actor.

Ray restarts a dead actor by itself (``max_restarts=-1``) but never repeats its calls
(``max_task_retries=0``): what is done again is decided by `nightstream.scheduler.state` alone.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from nightstream.errors import ConfigError
from nightstream.scheduler.config import SchedulerConfig, usable_cores
from nightstream.scheduler.executor import Died, MakeHost, Outcome, Ready, Reported, Setups, make_worker_host
from nightstream.scheduler.messages import DetectorJob

logger = logging.getLogger(__name__)

PING_PAUSE_S = 0.2  # between questions to an actor that is being restarted
BROKEN_EXIT = 70  # exit status of an actor that ends itself; unlike ray's exit_actor it is restarted after it
SHARES_PER_GPU = 10_000  # as finely as Ray divides a card
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


class DetectorActor:
    """The actor: a host and a health check that answers while the host works."""

    def __init__(self, make_host: MakeHost, setups: Setups, verbose: bool) -> None:
        if verbose:
            logging.basicConfig(level=logging.INFO)
        self._host = make_host(setups)

    def process(self, job: DetectorJob) -> Any:
        """Process one job; a host that raises is broken, and only a new process mends it."""
        try:
            return self._host.process(job)
        except Exception:
            logging.getLogger(__name__).exception("worker broken by visit %d detector %d", job.visit, job.detector)
            logging.shutdown()
            os._exit(BROKEN_EXIT)

    def health(self) -> int:
        """Answer with the process number."""
        return os.getpid()


class RayExecutor:
    """Run workers as Ray actors on this machine (``address="local"``) or on a running cluster."""

    def __init__(self, config: SchedulerConfig, make_host: MakeHost = make_worker_host) -> None:
        self._config = config
        self._make_host = make_host
        self._setups: dict[int, Setups] = {}
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, DetectorJob]] = {}  # reference of a call: whose, and what
        self._pings: dict[Any, int] = {}
        self._ping_at: dict[int, float] = {}  # worker: when to ask it next
        self._down: set[int] = set()
        self._options: dict[str, Any] = {}
        self._ray, self._owns_cluster = connect(config)

    def slots(self) -> int:
        """Actors that fit: by GPU if they need one, else one a core."""
        resources, share = self._ray.cluster_resources(), self._config.num_gpus_per_actor
        if share is None:
            share = float(self._usable_cards() > 0)
        if share > 0:
            return int(resources.get("GPU", 0) / share + 1e-9)
        return max(1, int(resources.get("CPU", 1)))

    def start(self, workers: Mapping[int, Setups]) -> None:
        """Make the actors."""
        self._setups = dict(workers)
        share = gpu_share(self._config, len(workers), self._all_setups(), self._usable_cards())
        needed, there = len(workers) * share, self._ray.cluster_resources().get("GPU", 0)
        if needed > there:
            raise ConfigError(f"{len(workers)} actors with {share:g} GPU each need {needed:g} GPUs; the cluster has {there:g}")
        self._options = actor_options(self._config, len(workers), self._all_setups(), share)
        for worker in workers:
            self._make_actor(worker)

    def submit(self, worker: int, job: DetectorJob) -> None:
        """Call the actor without waiting for it."""
        self._calls[self._actors[worker].process.remote(job)] = worker, job

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return what has ended; wait for the first thing to end, at most ``timeout_s``."""
        self._ping_due()
        pending = [*self._calls, *self._pings]
        if not pending:
            time.sleep(min(timeout_s, PING_PAUSE_S))
            return []
        pause = min(timeout_s, PING_PAUSE_S) if self._ping_at else timeout_s
        first, rest = self._ray.wait(pending, num_returns=1, timeout=pause)
        more = self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        outcomes = (self._take(reference) for reference in first + more)
        return [outcome for outcome in outcomes if outcome is not None]

    def restart(self, worker: int) -> None:
        """End the actor if it still lives; ask it until the one that Ray puts in its place answers."""
        if worker not in self._down:
            self._forget(worker)
            self._ray.kill(self._actors[worker], no_restart=False)
        self._ping_at[worker] = time.monotonic() + PING_PAUSE_S

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._calls.clear()
        self._pings.clear()
        if self._owns_cluster:
            self._ray.shutdown()

    def _usable_cards(self) -> float:
        """Cards of the cluster, as far as this installation can use any."""
        return self._ray.cluster_resources().get("GPU", 0) if find_spec("cupy") else 0

    def _all_setups(self) -> list:
        return [setup for setups in self._setups.values() for setup in setups]

    def _make_actor(self, worker: int) -> None:
        kind = self._ray.remote(**self._options)(DetectorActor)
        self._actors[worker] = kind.remote(self._make_host, self._setups[worker], self._config.verbose)

    def _take(self, reference: Any) -> Outcome | None:
        """What became of one call or health check."""
        if reference in self._pings:
            return self._take_ping(reference)
        if reference not in self._calls:
            return None  # forgotten a moment ago, when its worker was found dead
        worker, job = self._calls.pop(reference)
        try:
            return Reported(worker=worker, job=job, report=self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._forget(worker)
            return Died(worker=worker, reason=_one_line(error))

    def _take_ping(self, reference: Any) -> Outcome | None:
        worker = self._pings.pop(reference)
        try:
            pid = self._ray.get(reference)
        except self._ray.exceptions.ActorUnavailableError:
            self._ping_at[worker] = time.monotonic() + PING_PAUSE_S  # still being restarted: no death of its own
            return None
        except self._ray.exceptions.RayError as error:  # beyond Ray's help: the next one is a new actor
            self._make_actor(worker)
            return Died(worker=worker, reason=_one_line(error))
        logger.info("worker %d is back as process %d", worker, pid)
        self._down.discard(worker)
        return Ready(worker=worker)

    def _forget(self, worker: int) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != worker}
        self._down.add(worker)

    def _ping_due(self) -> None:
        for worker in [w for w, due in self._ping_at.items() if due <= time.monotonic()]:
            del self._ping_at[worker]
            self._pings[self._actors[worker].health.options(concurrency_group="health").remote()] = worker


def connect(config: SchedulerConfig) -> tuple[Any, bool]:
    """Import Ray and join or start a cluster; return the module and whether the cluster is ours to end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default; said aloud, it needs no notice
    with warnings.catch_warnings():
        # Ray announces changes of its own defaults to the user of its API, which is us and not ours.
        warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            return ray, False
        ray.init(**_init_arguments(config))
    return ray, True


def _init_arguments(config: SchedulerConfig) -> dict[str, Any]:
    common = {"log_to_driver": config.verbose, "configure_logging": config.verbose}
    if config.address != "local":
        return {"address": config.address, **common}
    return {
        "address": "local",
        "num_cpus": usable_cores(),
        "include_dashboard": False,
        "object_store_memory": config.object_store_mib * 2**20,
        **common,
    }


def gpu_share(config: SchedulerConfig, actors: int, setups: list, cards: float) -> float:
    """GPUs of every actor: as configured, else the cards shared out, at most one each and none for work on the CPU."""
    if config.num_gpus_per_actor is not None:
        return config.num_gpus_per_actor
    if all(setup.device == "cpu" for setup in setups):
        return 0.0
    return int(min(1.0, cards / actors) * SHARES_PER_GPU) / SHARES_PER_GPU


def actor_options(config: SchedulerConfig, actors: int, setups: list, share: float) -> dict[str, Any]:
    """Ray's options of every actor: its share of the cores and GPUs, restarts, concurrency groups."""
    threads = config.threads_per_actor or max(1, usable_cores() // actors)
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if share == 0 and all(setup.device in ("auto", "cpu") for setup in setups):
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray no longer hides the cards from actors that asked for none
    return {
        "num_cpus": 0,
        "num_gpus": share,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": config.lanes,
        "concurrency_groups": {"health": 1},
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": environment},
    }


def _one_line(error: Exception) -> str:
    """The line of Ray's long message that says something: the last where it quotes a traceback, else the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"{type(error).__name__}: {line.strip()}"
