"""The values that travel between stages. Planes keep one order everywhere: image, mask, variance.

| value          | made by            | holds                                                              |
|----------------|--------------------|--------------------------------------------------------------------|
| ExposureInfo   | io                 | identity, time, band, header facts                                 |
| RawDetector    | io                 | pixels as read, one raw image per amplifier                        |
| Calibrations   | engine.calibrate   | bias, dark, flat, defects of one detector                          |
| MaskedImage    | kernels            | image, mask, variance                                              |
| Exposure       | engine.characterize| a calibrated image with WCS, PSF and photometric calibration       |
| Template       | engine.template    | an Exposure-like coadd with its stars and noise correlation        |
| WarpedTemplate | engine.difference  | a template on the grid of a science image                          |
| DifferenceResult | engine.difference | the difference, what was subtracted, the kernel, numbers          |
| ReducedImage   | io                 | an image that another pipeline reduced, sky and all                |
| ScoreImage     | engine.score_image | significance and flux of a point source at every pixel             |
| Subtraction    | engine.subtraction | what became of a pair of reduced images                            |
| Cutouts        | engine.cutouts     | stamps around every DIASource                                      |
| DetectorProducts | engine.pipeline  | all that one detector of one visit yields                          |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_matching import MatchingKernel
from nightstream.kernels.wcs import Wcs

Array = Any  # numpy.ndarray or cupy.ndarray
Table = dict[str, Array]  # equal-length columns, snake_case names; io/schema.py maps them to the APDB's
NO_DIFFERENCE = "no_difference"  # key of the provenance that says why a difference could not be made


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureInfo:
    """Who, when and what one detector exposure is. Identity is (visit, detector)."""

    visit: int
    detector: int
    camera: str
    kind: str  # "science", "bias", "dark", "flat"
    band: str
    exposure_time_s: float
    dark_time_s: float
    midpoint_mjd_tai: float
    zero_point: float = 25.0  # nominal AB magnitude of 1 electron / s in this band
    path: str = ""  # where it came from, for messages and provenance
    header: str = ""  # FITS header as card text, newline separated


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDetector:
    """Pixels as read: ``pixels`` is (n_amplifiers, ny, nx), uint16, int32 or float32, adu, overscan included."""

    info: ExposureInfo
    pixels: Array
    wcs: Wcs | None = None  # the header's approximate WCS of the assembled detector


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """Three (ny, nx) planes: ``image`` float32, ``mask`` int32 (`MaskPlane`), ``variance`` float32 (unit of image squared)."""

    image: Array
    mask: Array
    variance: Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrations:
    """Calibration images of one detector, assembled (ny, nx). A plane that is None is not applied."""

    detector: int
    bias: MaskedImage | None = None  # electron
    dark: MaskedImage | None = None  # electron / s
    flat: MaskedImage | None = None  # 1 on average over the detector
    defects: Array | None = None  # int32 mask planes to set, normally BAD
    provenance: dict[str, str] = field(default_factory=dict)  # ids, versions, inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A calibrated visit image, difference or score image, with what is needed to measure on it."""

    info: ExposureInfo
    pixels: MaskedImage
    wcs: Wcs | None
    psf: PsfModel | None
    njy_per_unit: float  # nJy per unit of ``pixels.image``


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A static-sky image, nJy, on its own pixel grid; uncovered pixels are NaN with NO_DATA."""

    id: str
    band: str
    pixels: MaskedImage
    wcs: Wcs
    psf: PsfModel
    noise_correlation: Array  # (2r+1, 2r+1) autocorrelation of its noise, centre 1; a centred 1 for white noise
    stars: Table  # host: x, y, ra, dec, psf_flux (nJy), psf_flux_err of isolated stars, brightest first
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpedTemplate:
    """The template on the science grid and in science units, not yet convolved."""

    pixels: MaskedImage
    noise_correlation: Array  # as of `Template`; None for white noise
    psf: PsfModel  # in science pixels
    coverage: float  # fraction of the science pixels that have template


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceResult:
    """``difference`` in science units, positive where the science image is brighter, with its own PSF.

    ``matched_template`` is what was subtracted, in the same units: convolved unless the science image was.
    """

    difference: Exposure
    matched_template: Exposure
    kernel: MatchingKernel | None  # None where nothing was fitted (proper subtraction)
    diagnostics: dict[str, float]
    noise_correlation: Array = None  # host (5, 5): measured on empty sky, centre 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedImage:
    """A reduced image as its owner has it: any unit, sky left in or not.

    ``image`` (ny, nx) float32, NaN where there is no value; ``mask`` int32 (`MaskPlane`) or None; ``variance`` float32 in
    the unit of the image squared, or None: it is then made of ``gain`` (electrons per unit; None: from the sky's own
    scatter) and ``read_noise`` (electrons).
    """

    image: Array
    mask: Array | None = None
    variance: Array | None = None
    gain: float | None = None
    read_noise: float = 0.0
    saturation: float | None = None  # unit of the image; pixels at or above it are SAT
    wcs: Wcs | None = None
    info: ExposureInfo = field(
        default_factory=lambda: ExposureInfo(
            visit=0, detector=0, camera="", kind="science", band="", exposure_time_s=0.0, dark_time_s=0.0, midpoint_mjd_tai=0.0
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreImage:
    """Planes (ny, nx): ``score`` in sigma, 0 where nothing can be told; ``flux`` and ``flux_err`` of a point source at
    the pixel, science units, NaN without data; ``mask``."""

    score: Array
    flux: Array
    flux_err: Array
    mask: Array
    diagnostics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtraction:
    """What became of a pair of images. All on the science grid, in science units."""

    result: DifferenceResult
    science: Exposure  # sky subtracted
    template: WarpedTemplate  # on the science grid, in its own units, not convolved
    score: ScoreImage | None
    diagnostics: dict[str, float]

    @property
    def difference(self) -> Exposure:
        """The difference with its mask, variance and PSF."""
        return self.result.difference


@dataclass(frozen=True, slots=True)
class StampSet:
    """The stamps of one image around n sources, nJy, every plane flat: stamp i is [start_i, start_i + size_i^2), by rows.

    ``image`` float32, ``mask`` int32 (`MaskPlane`), ``variance`` float32 (nJy squared); off the detector NaN with NO_DATA.
    ``psf`` (n, p, p) float32 is the PSF at each source, centred on the middle pixel, with sum 1.
    """

    image: Array
    mask: Array
    variance: Array
    psf: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutouts:
    """Square stamps around the DIASources of one detector, in the order of their table; empty for none."""

    size: Array  # (n,) int32, side in pixels
    x0: Array  # (n,) int32, column of the first pixel on the detector; may be negative
    y0: Array  # (n,) int32, its row
    x: Array  # (n,) float64, where the source is on the detector, 0-based pixel centres
    y: Array
    difference: StampSet
    science: StampSet
    template: StampSet  # the matched template, on the pixels of the science image

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorProducts:
    """All that one detector of one visit yields."""

    visit_image: Exposure
    difference: Exposure | None  # None without a template, or where the pixels allowed none: ``provenance`` says why
    dia_sources: Table
    forced_sources: Table
    summary: dict[str, float]  # psf_fwhm_pix, sky_background, sky_noise, zero_point, n_stars, astrometric scatter, ...
    timings_s: dict[str, float]  # stage name: seconds
    provenance: dict[str, str]
    cutouts: Cutouts | None = None  # None without a difference
