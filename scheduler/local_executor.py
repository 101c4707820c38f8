"""The in-process executor: for one card, for debugging, and as the twin that the Ray executor is held
against."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping

from nightstream.scheduler.executor import Died, MakeHost, Outcome, Ready, Reported, Setups, make_worker_host
from nightstream.scheduler.messages import DetectorJob


class LocalExecutor:
    """Run every job in this process, one after the other, inside `wait`."""

    def __init__(self, make_host: MakeHost = make_worker_host) -> None:
        self._make_host = make_host
        self._setups: dict[int, Setups] = {}
        self._hosts: dict = {}
        self._jobs: deque[tuple[int, DetectorJob]] = deque()
        self._restarts: deque[int] = deque()

    def slots(self) -> int:
        """One: jobs run one after the other, so a second worker would only hold memory."""
        return 1

    def start(self, workers: Mapping[int, Setups]) -> None:
        """Make the workers."""
        self._setups = dict(workers)
        self._hosts = {worker: self._make_host(setups) for worker, setups in workers.items()}

    def submit(self, worker: int, job: DetectorJob) -> None:
        """Remember the job."""
        self._jobs.append((worker, job))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Do one thing that is due, however long it takes."""
        if self._restarts:
            return [self._make_again(self._restarts.popleft())]
        if self._jobs:
            return [self._work_off(*self._jobs.popleft())]
        return []

    def restart(self, worker: int) -> None:
        """Make the worker anew at the next `wait`."""
        self._hosts.pop(worker, None)
        self._jobs = deque(entry for entry in self._jobs if entry[0] != worker)
        self._restarts.append(worker)

    def close(self) -> None:
        """Forget everything."""
        self._hosts.clear()
        self._jobs.clear()

    def _work_off(self, worker: int, job: DetectorJob) -> Outcome:
        try:
            return Reported(worker=worker, job=job, report=self._hosts[worker].process(job))
        except Exception as error:  # a host that raises is broken; its jobs go with it
            self._jobs = deque(entry for entry in self._jobs if entry[0] != worker)
            return Died(worker=worker, reason=f"{type(error).__name__}: {error}")

    def _make_again(self, worker: int) -> Outcome:
        try:
            self._hosts[worker] = self._make_host(self._setups[worker])
        except Exception as error:
            return Died(worker=worker, reason=f"{type(error).__name__}: {error}")
        return Ready(worker=worker)


class ThreadExecutor:
    """One thread for each worker, all in this process; the kernels release the GIL."""

    def __init__(self, threads: int, make_host: MakeHost = make_worker_host) -> None:
        self._threads = threads
        self._make_host = make_host
        self._setups: dict[int, Setups] = {}
        self._inboxes: dict[int, queue.SimpleQueue] = {}
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def slots(self) -> int:
        """The number of threads asked for."""
        return self._threads

    def start(self, workers: Mapping[int, Setups]) -> None:
        """Make the workers, each in its thread."""
        self._setups = dict(workers)
        for worker in workers:
            self._begin(worker, restarted=False)

    def submit(self, worker: int, job: DetectorJob) -> None:
        """Put the job into the worker's inbox."""
        self._inboxes[worker].put(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes that lie ready, or the first that comes."""
        outcomes: list[Outcome] = []
        try:
            outcomes.append(self._outcomes.get(timeout=timeout_s))
            while True:
                outcomes.append(self._outcomes.get_nowait())
        except queue.Empty:
            return outcomes

    def restart(self, worker: int) -> None:
        """Begin a new thread. A hung one cannot be ended; its late answer is told apart by its attempt."""
        self._inboxes[worker].put(None)
        self._begin(worker, restarted=True)

    def close(self) -> None:
        """Ask the threads to end after their present job."""
        for inbox in self._inboxes.values():
            inbox.put(None)

    def _begin(self, worker: int, *, restarted: bool) -> None:
        inbox = self._inboxes[worker] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(worker, inbox, restarted), name=f"worker-{worker}", daemon=True).start()

    def _serve(self, worker: int, inbox: queue.SimpleQueue, restarted: bool) -> None:
        try:
            host = self._make_host(self._setups[worker])
            if restarted:
                self._outcomes.put(Ready(worker=worker))
            while (job := inbox.get()) is not None:
                self._outcomes.put(Reported(worker=worker, job=job, report=host.process(job)))
        except Exception as error:
            if self._inboxes[worker] is inbox:  # not one that was given up and replaced
                self._outcomes.put(Died(worker=worker, reason=f"{type(error).__name__}: {error}"))
