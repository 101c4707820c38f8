"""A stand-in for the host of a worker: quick, without pixels, able to fail in every way; Ray's actors import it."""

from __future__ import annotations

import os
from pathlib import Path

from nightstream.scheduler.messages import DetectorJob, DetectorReport


class FakeHost:
    """Answers at once; the job's path says what is to go wrong.

    "bad..." fails, "raise..." breaks the host, "kill-..." ends the process unless that file exists, which it makes
    first.
    """

    def __init__(self, setups):
        self.setups = {setup.detector: setup for setup in setups}

    def process(self, job: DetectorJob) -> DetectorReport:
        name = Path(job.path).name
        if name.startswith("raise"):
            raise RuntimeError("the context is gone")
        if name.startswith("kill-") and not Path(job.path).exists():
            Path(job.path).touch()
            os._exit(1)
        error = "unreadable" if name.startswith("bad") else ""
        return DetectorReport(
            visit=job.visit,
            detector=job.detector,
            path=job.path,
            status="failed" if error else "done",
            error=error,
            counts={"dia_sources": 10 * job.visit + job.detector},
            summary={"threads": float(os.environ.get("NUMBA_NUM_THREADS", "0"))},
            output=self.setups[job.detector].output_dir,
        )
