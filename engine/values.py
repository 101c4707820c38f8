"""The values that travel between stages. Planes keep one order everywhere: image, mask, variance.

| value          | made by            | holds                                                              |
|----------------|--------------------|--------------------------------------------------------------------|
| ExposureInfo   | io                 | identity, time, band, header facts                                 |
| RawDetector    | io                 | pixels as read, one raw image per amplifier                        |
| Calibrations   | engine.calibrate   | bias, dark, flat, defects of one detector                          |
| MaskedImage    | kernels            | image, mask, variance                                              |
| Exposure       | engine.characterize| a calibrated image with WCS, PSF and photometric calibration       |
| Template       | engine.template    | an Exposure-like coadd with its stars and noise correlation        |
| Cutouts        | engine.cutouts     | stamps around every DIASource                                      |
| DetectorProducts | engine.pipeline  | all that one detector of one visit yields                          |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

Array = Any  # numpy.ndarray or cupy.ndarray
Table = dict[str, Array]  # equal-length columns, snake_case names; io/schema.py maps them to the APDB's


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
    difference: Exposure | None  # None without a template
    dia_sources: Table
    forced_sources: Table
    summary: dict[str, float]  # psf_fwhm_pix, sky_background, sky_noise, zero_point, n_stars, astrometric scatter, ...
    timings_s: dict[str, float]  # stage name: seconds
    provenance: dict[str, str]
    cutouts: Cutouts | None = None  # None without a difference
