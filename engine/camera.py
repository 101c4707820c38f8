"""The camera as values: where every amplifier lies in the raw frame and on the detector, and its electronic constants.

Made from YAML by `nightstream.io.cameras`; nothing here knows a file. Boxes are 0-based, half open, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels: rows ``y0 <= y < y1``, columns ``x0 <= x < x1``."""

    x0: int
    x1: int
    y0: int
    y1: int

    def __post_init__(self) -> None:
        if self.x1 < self.x0 or self.y1 < self.y0 or self.x0 < 0 or self.y0 < 0:
            raise ValueError(f"box needs 0 <= start <= stop, got x {self.x0}:{self.x1}, y {self.y0}:{self.y1}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of an array in [y, x] order."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amplifier:
    """One readout channel.

    ``hdu`` and ``raw`` say where its pixels (overscan included) are in the raw file; ``data``, ``serial_overscan`` and
    ``parallel_overscan`` are boxes *within* those pixels; ``detector`` is where ``data`` lands on the detector,
    mirrored first along x if ``flip_x`` and along y if ``flip_y``.
    """

    name: str
    hdu: int | str
    raw: Box
    data: Box
    serial_overscan: Box | None
    parallel_overscan: Box | None
    detector: Box
    flip_x: bool
    flip_y: bool
    gain: float  # electron / adu
    read_noise: float  # electron
    saturation_adu: float  # raw counts, pedestal included, at and above which a pixel is saturated
    suspect_adu: float = float("inf")  # raw counts from which linearity is in doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """One CCD: its number in the camera, its shape in pixels and its amplifiers (all with raw arrays of one shape)."""

    id: int
    name: str
    shape: tuple[int, int]  # (ny, nx) of the assembled image
    amplifiers: tuple[Amplifier, ...]
    defects: tuple[Box, ...] = ()  # known bad pixels of the assembled image that calibrations do not show, e.g. traps

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        """(n_amplifiers, ny, nx) of the stack of raw amplifier images."""
        return (len(self.amplifiers), *self.amplifiers[0].raw.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A camera: detectors by number, pixel scale, and nominal zero points."""

    name: str
    detectors: dict[int, Detector]
    pixel_scale_arcsec: float
    zero_points: dict[str, float] = field(default_factory=dict)  # band: AB magnitude giving 1 electron / s
    default_zero_point: float = 25.0  # AB magnitude giving 1 electron / s in a band not listed
