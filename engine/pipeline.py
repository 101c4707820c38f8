"""One detector from raw pixels to difference-image sources: the stages, in order, with what they need resident.

| what                 | owner              | lives                          |
|----------------------|--------------------|--------------------------------|
| calibrations         | DetectorPipeline   | on the device, all night       |
| template             | DetectorPipeline   | on the device, all night       |
| planes of a visit    | `process`          | on the device, one visit       |
| DetectorProducts     | the caller         | on the host (`reduce`: device) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.camera import Detector
from nightstream.engine.characterize import Characterized, characterize, reference_from_stars
from nightstream.engine.config import EngineConfig
from nightstream.engine.cutouts import cut_stamps
from nightstream.engine.difference import subtract
from nightstream.engine.force import flux_limit, force_photometry, join_positions, source_positions
from nightstream.engine.isr import remove_signature
from nightstream.engine.measure import measure_dia_sources
from nightstream.engine.memory import DetectorMemory, Device
from nightstream.engine.values import (
    NO_DIFFERENCE,
    Calibrations,
    DetectorProducts,
    Exposure,
    ExposureInfo,
    RawDetector,
    Table,
    Template,
)
from nightstream.errors import NightstreamError, UnprocessableError

Stage = Callable[[str], AbstractContextManager]  # opened around each stage with its name, e.g. to time it


class DetectorPipeline:
    """Processes the visits of one detector, one after the other.

    ``template`` None makes calibrated visit images only. ``reference`` (ra, dec, flux in nJy) is used for the WCS and
    zero point where there is no template; with a template its stars are the reference, so that the two images agree.
    """

    def __init__(
        self,
        detector: Detector,
        calibrations: Calibrations,
        template: Template | None = None,
        config: EngineConfig | None = None,
        device: Device = "auto",
        *,
        reference: Table | None = None,
        stage: Stage = lambda name: nullcontext(),
    ) -> None:
        use_one_blas_thread()
        self.detector = detector
        self.config = config or EngineConfig()
        self.memory = DetectorMemory(device)
        self.calibrations = self.memory.keep(calibrations)
        self.template = None
        if template is not None:  # its stars serve on the host
            self.template = replace(self.memory.keep(replace(template, stars={})), stars=template.stars)
        self.reference = reference_from_stars(template.stars) if template is not None else reference
        self.stage = stage

    def calibrate(self, raw: RawDetector, reference: Table | None = None) -> Characterized:
        """Return the calibrated visit image and its stars, on the device; ``reference`` replaces the resident one.

        Raises a `NightstreamError` that names visit, detector and file.
        """
        try:
            with self.stage("upload"):
                raw = self.memory.upload(raw)
            with self.stage("isr"):
                pixels = remove_signature(raw, self.detector, self.calibrations, self.config.isr)
            with self.stage("characterize"):
                chosen = reference if reference is not None else self.reference
                return characterize(pixels, raw.info, raw.wcs, chosen, self.config.characterize)
        except NightstreamError as error:
            raise located(error, raw.info) from None

    def process(self, raw: RawDetector, forced_positions: Table | None = None) -> DetectorProducts:
        """Return all products of one visit, on the host.

        ``forced_positions`` (host) has ra, dec (deg) and dia_object_id; forced photometry is done there and at every
        DIASource, whose rows have dia_object_id 0 and their dia_source_id.

        Raises a `NightstreamError` that names visit, detector and file; nothing is left behind. Pixels that allow no
        difference (UnprocessableError) raise none: the visit image is kept, with the reason in ``provenance``.
        """
        with self.memory.lane():
            products = self.reduce(raw, forced_positions)
            with self.stage("download"):
                return self.memory.download(products)

    def reduce(self, raw: RawDetector, forced_positions: Table | None = None) -> DetectorProducts:
        """Return the same as `process`, on the device."""
        science = self.calibrate(raw)
        try:
            return self._measure(science, forced_positions)
        except NightstreamError as error:
            raise located(error, raw.info) from None

    def _measure(self, science: Characterized, positions: Table | None) -> DetectorProducts:
        """All products; where the pixels allow no difference, the visit image and the reason."""
        visit = DetectorProducts(
            visit_image=science.exposure, difference=None, dia_sources={}, forced_sources={}, summary=science.summary,
            timings_s={}, provenance=self.provenance(),
        )  # fmt: skip
        if self.template is None:
            return visit
        try:
            return self._with_difference(visit, self.template, positions)
        except UnprocessableError as error:
            reason = str(located(error, science.exposure.info))
            return replace(visit, provenance=visit.provenance | {NO_DIFFERENCE: reason})

    def _with_difference(self, visit: DetectorProducts, template: Template, positions: Table | None) -> DetectorProducts:
        exposure = visit.visit_image
        with self.stage("difference"):
            result = subtract(exposure, template, self.config.difference)
        difference = result.difference
        with self.stage("measure"):
            sources = measure_dia_sources(difference, exposure, result.matched_template, self.config.measure)
        with self.stage("force"):
            forced = self._force(exposure, difference, sources, positions)
            summary = visit.summary | result.diagnostics | {"psf_flux_limit": flux_limit(difference)}
        with self.stage("cutouts"):
            cutouts = cut_stamps(difference, exposure, result.matched_template, sources, self.config.cutout)
        return replace(visit, difference=difference, dia_sources=sources, forced_sources=forced, summary=summary, cutouts=cutouts)

    def _force(self, exposure: Exposure, difference: Exposure, sources: Table, positions: Table | None) -> Table:
        config = self.config.force
        at = join_positions(positions, source_positions(sources) if config.at_sources else None)
        return force_photometry(exposure, difference, at, config)

    def provenance(self) -> dict[str, str]:
        """Return what made these products: configuration, calibrations and template."""
        made_by = {f"calibration.{key}": value for key, value in self.calibrations.provenance.items()}
        if self.template is not None:
            made_by["template"] = self.template.id
        return made_by | {"config": self.config.model_dump_json(), "device": self.memory.device}


def calibrate_together(pipeline: DetectorPipeline, raws: Iterable[RawDetector]) -> Iterator[Characterized]:
    """Calibrate visits of one field onto one frame: without a catalogue, the first visit's stars are the reference."""
    reference = pipeline.reference
    for raw in raws:
        done = pipeline.calibrate(raw, reference)
        if reference is None:
            reference = reference_from_stars(done.stars, done.exposure.njy_per_unit)
        yield done


def located(error: NightstreamError, info: ExposureInfo) -> NightstreamError:
    """Return ``error`` naming the visit, detector and file of ``info``."""
    return error.locate(visit=info.visit, detector=info.detector, path=info.path or None)
