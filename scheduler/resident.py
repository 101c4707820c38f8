"""What a worker keeps in memory: the camera, one detector's calibrations, and a pipeline for each band's template."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nightstream.engine.force import join_positions
from nightstream.engine.measure import source_ids
from nightstream.engine.memory import DetectorMemory
from nightstream.engine.pipeline import DetectorPipeline
from nightstream.engine.values import DetectorProducts, RawDetector, Table
from nightstream.errors import InputError, NightstreamError
from nightstream.io.calibrations import find_calibrations
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.catalogues import read_positions, read_preload, read_reference
from nightstream.io.products import write_detector_products
from nightstream.io.raw import read_raw
from nightstream.io.templates import read_template
from nightstream.kernels.target import release_freed_memory
from nightstream.scheduler.messages import DetectorJob, WorkerSetup
from nightstream.scheduler.worker import Stages

logger = logging.getLogger(__name__)


class WorkerInput(NamedTuple):
    """What is read for one job."""

    raw: RawDetector
    positions: Table  # to force photometry at


class ResidentDetector:
    """Everything of one detector that outlives a visit. Templates are loaded when the first raw of their band comes.

    Threads may work on visits side by side, each calling `read`, `process` and `write` in this order: what is read goes to
    the device, and what is written comes from there, in the lane of its thread.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.camera = load_camera(setup.camera)
        if setup.detector not in self.camera.detectors:
            raise InputError(f"camera {self.camera.name} has no detector {setup.detector}")
        self.detector = self.camera.detectors[setup.detector]
        self.config = engine_config(self.camera, setup.config)
        self.calibrations = find_calibrations(setup.calibration_dir, self.camera.name, self.detector)
        self.reference = read_reference(setup.reference) if setup.reference else None
        self.positions = read_positions(setup.forced_positions) if setup.forced_positions else None
        self.memory = DetectorMemory(setup.device)
        self._pipelines: dict[str, DetectorPipeline] = {}
        self._loading = threading.Lock()
        self._visit = threading.local()  # seconds of the stages of the visit that a thread works on

    def read(self, job: DetectorJob) -> WorkerInput:
        """Read the raw file of a job, whose header must agree with the job, and the objects preloaded for it."""
        raw = read_raw(job.path, self.camera, job.detector, allocate=self.memory.host_array)
        if raw.info.visit != job.visit:
            raise InputError(f"got visit {raw.info.visit} in the header, wanted {job.visit}")
        if self.setup.template_dir:
            source_ids(raw.info.visit, raw.info.detector, 0)  # raises now what numbering the sources would raise later
        with self.memory.lane():
            return WorkerInput(self.memory.upload(raw), join_positions(_preloaded(job), self.positions))

    def process(self, given: WorkerInput) -> DetectorProducts:
        """Run the pipeline of the raw's band; the products, on the device, carry the seconds of each stage."""
        self._visit.timings = {}
        raw = given.raw
        with self.memory.lane():
            with self._stage("prepare"):
                pipeline = self.pipeline(raw.info.band)
            products = pipeline.reduce(raw, given.positions)
        return dataclasses.replace(products, timings_s=products.timings_s | self._visit.timings)

    def write(self, products: DetectorProducts) -> Path:
        """Write the products, complete or not at all."""
        with self.memory.lane():
            products = self.memory.download(products)
        return write_detector_products(self.setup.output_dir, products, steps_per_sigma=self.setup.steps_per_sigma)

    def pipeline(self, band: str) -> DetectorPipeline:
        """Return the pipeline of ``band``; all bands share the calibrations in memory."""
        with self._loading:
            if band not in self._pipelines:
                self._pipelines[band] = self._load_pipeline(band)
            return self._pipelines[band]

    def _load_pipeline(self, band: str) -> DetectorPipeline:
        directory = self.setup.template_dir
        template = read_template(directory, band, self.detector.id) if directory else None
        pipeline = DetectorPipeline(
            self.detector,
            self.calibrations,
            template,
            self.config,
            self.setup.device,
            reference=self.reference,
            stage=self._stage,
        )
        self.calibrations = pipeline.calibrations  # on the device from now on
        release_freed_memory()  # of what was read
        return pipeline

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time one stage, the device's work included."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.memory.synchronize()
            timings = self._visit.timings
            timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


def _preloaded(job: DetectorJob) -> Table | None:
    """The objects preloaded for a job. A preload that is lost costs nothing: the publisher measures them on the product."""
    try:
        return read_preload(job.positions) if job.positions else None
    except NightstreamError as error:
        logger.warning("preload not used: %s", error.locate(visit=job.visit, detector=job.detector))
        return None


def build_stages(setup: WorkerSetup) -> Stages:
    """Load what stays resident and return what a worker calls."""
    resident = ResidentDetector(setup)
    return Stages(read=resident.read, process=resident.process, write=resident.write)
