"""The point-spread function as a value: an image whose every pixel is a polynomial of the detector position.

Owns the model and its evaluation. Fitting is in `nightstream.kernels.psf_fit`, the choice of stars in
`psf_stars`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.target import array_module, chunks, for_each

LANCZOS_ORDER = 7  # half width, pixels, of the interpolant that moves a stamp by a fraction of a pixel
FWHM_OVERSAMPLING = 10  # sub-pixels a pixel when the area above half maximum is counted
STAMPS_PER_CHUNK = 128  # that a CPU's thread makes at a time
FWHM_PER_SIGMA = 2.3548200450309493  # 2 sqrt(2 ln 2)


@dataclass(frozen=True, slots=True, eq=False)
class PsfModel:
    """PSF on integer detector pixels: ``P(x, y) = sum_k u^i v^j coefficients[k]``, i + j <= order.

    ``u = (x - x_centre) / x_scale``, likewise v; terms in the order of `polynomial_exponents`.
    ``coefficients`` is (n_terms, size, size), size odd, in the library (NumPy, CuPy) the evaluation uses.
    A stamp sums to 1 over its size x size pixels: light in the wings beyond them is counted neither in the
    PSF nor in a flux fitted with it; the zero point absorbs it, being measured with the same PSF.

    Sub-pixel shifts are Lanczos-7: for round Moffat profiles right to 0.3 % of the peak at FWHM >= 2.8
    pixels. At FWHM 2.2 aliasing makes errors that depend on the phase: 1 % of the peak in a shift, 4 % in a
    model fitted to stars of all phases, 1 % in fluxes fitted with it. No model on the pixel grid avoids them.
    """

    coefficients: Any
    order: int = 0
    x_centre: float = 0.0
    y_centre: float = 0.0
    x_scale: float = 1.0
    y_scale: float = 1.0

    def __post_init__(self) -> None:
        wanted = len(polynomial_exponents(self.order))
        shape = self.coefficients.shape
        if len(shape) != 3 or shape[0] != wanted or shape[1] != shape[2] or shape[1] % 2 == 0:
            raise InputError(f"PSF coefficients need shape ({wanted}, n, n) with n odd for order {self.order}, got {shape}")

    @classmethod
    def gaussian(cls, sigma_pix: float, size: int = 25) -> PsfModel:
        """Return a round Gaussian, the same everywhere, sampled at pixel centres."""
        offset = np.arange(size) - size // 2
        profile = np.exp(-0.5 * (offset / sigma_pix) ** 2)
        return cls.constant(profile[:, None] * profile[None, :])

    @classmethod
    def constant(cls, stamp) -> PsfModel:
        """Return the PSF that is ``stamp`` (size, size), normalised to sum 1, everywhere."""
        return cls(stamp[None].astype(np.float64) / stamp.sum())

    @property
    def size(self) -> int:
        """Width and height of a stamp in pixels; odd."""
        return self.coefficients.shape[1]

    @property
    def sigma_pix(self) -> float:
        """Standard deviation of the Gaussian with the FWHM of the PSF at ``x_centre, y_centre``."""
        return float(self.fwhm_pix(self.x_centre, self.y_centre)[0]) / FWHM_PER_SIGMA

    def centred(self, x, y):
        """Return (n, size, size) float32 PSFs at ``x, y`` centred on the middle pixel; each sums to 1."""
        return self.centred_float64(x, y).astype(np.float32)

    def stamps(self, x, y):
        """Return (n, size, size) float32 PSF images of sources at ``x, y``; each sums to 1.

        The middle pixel of a stamp is the detector pixel ``(rint(y), rint(x))``.
        """
        xp = array_module(self.coefficients)
        x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
        out = xp.empty((len(x), self.size, self.size), np.float32)

        def fill(chunk: slice) -> None:
            at = x[chunk], y[chunk]
            shifted = shift_stamps(self.centred_float64(*at), *(value - xp.rint(value) for value in at))
            out[chunk] = unit_sum(shifted)

        for_each(fill, chunks(len(x), STAMPS_PER_CHUNK, xp), xp)
        return out

    def fwhm_pix(self, x, y):
        """Return (n,) float64 diameters of the circles with the area that lies above half of the peak."""
        xp = array_module(self.coefficients)
        n_fine = self.size * FWHM_OVERSAMPLING
        fine = (xp.arange(n_fine) + 0.5) / FWHM_OVERSAMPLING - 0.5
        sample = lanczos(fine[:, None] - xp.arange(self.size)[None, :])
        sample /= sample.sum(axis=1, keepdims=True)
        surface = sample @ self.centred_float64(x, y) @ sample.T
        above = surface > 0.5 * surface.max(axis=(1, 2), keepdims=True)
        return xp.sqrt(above.sum(axis=(1, 2)) * (4 / xp.pi)) / FWHM_OVERSAMPLING

    def terms(self, x, y):
        """Return (n, n_terms) values of the polynomial's terms at ``x, y``."""
        xp = array_module(self.coefficients)
        x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
        u, v = (x - self.x_centre) / self.x_scale, (y - self.y_centre) / self.y_scale
        return polynomial_terms(u, v, self.order)

    def centred_float64(self, x, y):
        """Return what `centred` does, in double precision."""
        terms = self.terms(x, y)
        n_terms, size = self.coefficients.shape[:2]
        return unit_sum((terms @ self.coefficients.reshape(n_terms, -1)).reshape(-1, size, size))


def polynomial_exponents(order: int) -> list[tuple[int, int]]:
    """Return the exponents (i of u, j of v) of all terms with i + j <= order, by rising degree."""
    return [(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)]


def polynomial_terms(u, v, order: int):
    """Return (n, n_terms) values ``u^i v^j`` in the order of `polynomial_exponents`."""
    xp = array_module(u)
    return xp.stack([u**i * v**j for i, j in polynomial_exponents(order)], axis=1)


def unit_sum(stamps):
    """Return ``stamps`` (n, size, size), each divided by its sum."""
    return stamps / stamps.sum(axis=(1, 2), keepdims=True)


def lanczos(distance, order: int = LANCZOS_ORDER):
    """Return the Lanczos window sinc(t) sinc(t / order) of ``distance`` in pixels, not normalised."""
    xp = array_module(distance)
    inside = xp.abs(distance) < order
    return xp.where(inside, xp.sinc(distance) * xp.sinc(distance / order), 0.0)


def shift_matrices(shift, size: int):
    """Return (n, size, size) matrices that move a row of pixels by ``shift`` (n,) pixels, zeros entering.

    Weights are divided by their sum over an endless row, so that a constant stays constant at every phase.
    """
    xp = array_module(shift)
    reach = max(size - 1, LANCZOS_ORDER + 1)
    taps = lanczos(xp.arange(-reach, reach + 1)[None, :] - shift[:, None])
    taps /= taps.sum(axis=1, keepdims=True)
    pixel = xp.arange(size)
    return xp.ascontiguousarray(taps[:, pixel[:, None] - pixel[None, :] + reach])


def shift_stamps(stamps, shift_x, shift_y):
    """Return ``stamps`` (n, size, size) moved by ``shift_x, shift_y`` (n,) pixels, |shift| <= 1."""
    size = stamps.shape[-1]
    along_x = shift_matrices(shift_x, size)
    return shift_matrices(shift_y, size) @ stamps @ along_x.transpose(0, 2, 1)
