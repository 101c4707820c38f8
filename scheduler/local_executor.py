"""The in-process executor: for one card, for debugging, and as the twin that the Ray executor is held
against."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping

from nightstream.scheduler.executor import Died, Host, MakeHost, Outcome, Ready, Reported, Setups, make_worker_host
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
    """``workers`` in this process, each with a thread for every one of the ``lanes`` jobs that it has under way; the kernels
    release the GIL."""

    def __init__(self, workers: int, make_host: MakeHost = make_worker_host, *, lanes: int = 1) -> None:
        self._workers = workers
        self._lanes = lanes
        self._make_host = make_host
        self._setups: dict[int, Setups] = {}
        self._crews: dict[int, _Crew] = {}
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def slots(self) -> int:
        """The number of workers asked for."""
        return self._workers

    def start(self, workers: Mapping[int, Setups]) -> None:
        """Make the workers, each in its threads."""
        self._setups = dict(workers)
        for worker in workers:
            self._begin(worker, restarted=False)

    def submit(self, worker: int, job: DetectorJob) -> None:
        """Put the job into the worker's inbox."""
        self._crews[worker].inbox.put(job)

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
        """Begin new threads. Hung ones cannot be ended; their late answers are told apart by the attempt."""
        self._crews[worker].dismiss()
        self._begin(worker, restarted=True)

    def close(self) -> None:
        """Ask the threads to end after their present job."""
        for crew in self._crews.values():
            crew.dismiss()

    def _begin(self, worker: int, *, restarted: bool) -> None:
        crew = self._crews[worker] = _Crew(worker, self._outcomes)
        thread = threading.Thread(target=self._serve, args=(crew, restarted), name=f"worker-{worker}", daemon=True)
        thread.start()

    def _serve(self, crew: _Crew, restarted: bool) -> None:
        try:
            host = self._make_host(self._setups[crew.worker])
        except Exception as error:
            crew.die(error)
            return
        if restarted:
            self._outcomes.put(Ready(worker=crew.worker))
        for lane in range(1, self._lanes):
            name = f"worker-{crew.worker}-{lane}"
            threading.Thread(target=crew.work, args=(host,), name=name, daemon=True).start()
        crew.work(host)


class _Crew:
    """The threads of one worker: they share its inbox, and one death."""

    def __init__(self, worker: int, outcomes: queue.SimpleQueue[Outcome]) -> None:
        self.worker = worker
        self.inbox: queue.SimpleQueue[DetectorJob | None] = queue.SimpleQueue()
        self._outcomes = outcomes
        self._may_die = threading.Semaphore()  # taken by the first to tell

    def work(self, host: Host) -> None:
        """Work jobs off until there is none to come."""
        try:
            while (job := self.inbox.get()) is not None:
                self._outcomes.put(Reported(worker=self.worker, job=job, report=host.process(job)))
        except Exception as error:
            self.die(error)
        self.inbox.put(None)  # for the next thread

    def die(self, error: Exception) -> None:
        """Tell of the worker's death, once, unless it was dismissed before."""
        if self._may_die.acquire(blocking=False):
            self._outcomes.put(Died(worker=self.worker, reason=f"{type(error).__name__}: {error}"))

    def dismiss(self) -> None:
        """Let the threads end after their present job, and say no more of a death."""
        self._may_die.acquire(blocking=False)
        self.inbox.put(None)
