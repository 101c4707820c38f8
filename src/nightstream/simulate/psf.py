"""The simulator's point-spread function: an elliptical Moffat profile that varies over the focal plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BETA = 3.2  # slope of the wings; the atmosphere gives 2.5 to 4.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MoffatPsf:
    """The point-spread function of one exposure, as a function of focal-plane position.

    ``origin`` is the focal-plane position of the detector's pixel (0, 0) and ``radius_pix`` the focal plane's
    half size, both in pixels; with u = X / radius_pix, v = Y / radius_pix and the three coefficient rows c
    (1, u, v, u^2 + v^2): FWHM = fwhm_pix * (1 + c . terms), e1 and e2 likewise without the leading 1.
    """

    fwhm_pix: float
    origin: tuple[float, float]
    radius_pix: float
    fwhm_terms: tuple[float, float, float, float]
    e1_terms: tuple[float, float, float, float]
    e2_terms: tuple[float, float, float, float]
    beta: float = BETA

    def parameters(self, x: float, y: float) -> tuple[float, float, float]:
        """Return (FWHM in pixels, e1, e2) at detector position ``x, y``; e is the reduced shear of the
        profile."""
        u, v = (x + self.origin[0]) / self.radius_pix, (y + self.origin[1]) / self.radius_pix
        terms = np.array([1.0, u, v, u * u + v * v])
        fwhm = self.fwhm_pix * (1.0 + float(terms @ self.fwhm_terms))
        return fwhm, float(terms @ self.e1_terms), float(terms @ self.e2_terms)

    def stamp(self, x: float, y: float, half: int) -> tuple[int, int, np.ndarray]:
        """Return ``(ix, iy, stamp)``: the profile at ``x, y`` on pixels ``ix - half .. ix + half``, flux to
        infinity 1.

        Values are those of the effective PSF at the pixel centres, float64, shape (2 half + 1, 2 half + 1).
        """
        ix, iy = int(np.rint(x)), int(np.rint(y))
        offset = np.arange(-half, half + 1, dtype=np.float64)
        fwhm, e1, e2 = self.parameters(x, y)
        return ix, iy, moffat(offset[None, :] + (ix - x), offset[:, None] + (iy - y), fwhm, e1, e2, self.beta)

    def half_size(self, flux: float, noise: float, smallest: int = 12, largest: int = 240) -> int:
        """Return the stamp half size at which the wing of a source of ``flux`` falls to 0.03 ``noise`` a
        pixel."""
        scale = core_radius(self.fwhm_pix, self.beta)
        peak = flux * (self.beta - 1.0) / (np.pi * scale * scale)
        radius = scale * max(abs(peak) / (0.03 * noise), 1.0) ** (0.5 / self.beta)
        return int(np.clip(radius, smallest, largest))


def core_radius(fwhm: float, beta: float) -> float:
    """Return the Moffat scale radius of a profile of full width at half maximum ``fwhm``."""
    return fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))


def moffat(dx: np.ndarray, dy: np.ndarray, fwhm: float, e1: float, e2: float, beta: float) -> np.ndarray:
    """Return a sheared Moffat profile of unit flux at offsets ``dx, dy`` (pixels), which broadcast.

    I(r) = (beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta with r the offset after an area-preserving shear
    (Moffat 1969).
    """
    scale = core_radius(fwhm, beta)
    norm = 1.0 / (scale * np.sqrt(1.0 - e1 * e1 - e2 * e2))
    x = norm * ((1.0 - e1) * dx - e2 * dy)
    y = norm * ((1.0 + e1) * dy - e2 * dx)
    return (beta - 1.0) / (np.pi * scale * scale) * (1.0 + x * x + y * y) ** -beta
