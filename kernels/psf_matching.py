"""The kernel that brings one image to the PSF of another: fit on stamps, spatially varying, with a
background.

target(p) = sum_q K(q; p) source(p - q) + background(p), least squares over star stamps (Alard & Lupton 1998,
Alard 2000). Weights are inverse variances in which the target's own noise has no part (see
`_expected_variance`), the spatial order and the size of the basis are those that predict stamps left out of
the fit best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nightstream.errors import UnprocessableError
from nightstream.kernels.convolution import tile_centres
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.matching_basis import GaussianBasis, choose_sigmas, choose_size, gaussian_basis
from nightstream.kernels.matching_fit import Candidate, fit_stamps
from nightstream.kernels.matching_stamps import gather_stamps
from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.target import array_module


@dataclass(frozen=True, slots=True, eq=False)
class MatchingKernel:
    """``K(x, y) = sum_bt coefficients[b, t] p_t(u, v) basis[b]`` and ``background = sum_t background[t]
    p_t(u, v)``.

    ``p_t`` are the terms of `psf.polynomial_terms` of u, v = pixel / ``scale`` - 1, each within [-1, 1] on
    the image.
    """

    basis: Any  # (n, size, size) float64; the first sums to 1, the others to 0
    coefficients: Any  # (n, terms) float64
    background: Any  # (background terms,) float64, unit of the target
    shape: tuple[int, int]  # of the image it was fitted on
    diagnostics: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side in pixels, odd."""
        return self.basis.shape[1]

    @property
    def kernel_sum(self) -> float:
        """Photometric scale, target / source, at the centre of the image."""
        return float(self.coefficients[0, 0])

    def kernel_at(self, x, y):
        """Return (n, size, size) float64 kernels at pixel positions ``x, y``."""
        xp = array_module(self.basis)
        weights = self._terms(x, y, self.coefficients.shape[1]) @ self.coefficients.T
        return (weights @ self.basis.reshape(len(self.basis), -1)).reshape(-1, *self.basis.shape[1:]) + xp.float64(0)

    def tile_kernels(self, shape, tile_pix):
        """Return (tiles_y, tiles_x, size, size) float32 kernels at the centres of the tiles of ``shape``."""
        xp = array_module(self.basis)
        x, y = tile_centres(shape, tile_pix, xp=xp)
        kernels = self.kernel_at(x.ravel(), y.ravel())
        return kernels.reshape(*x.shape, self.size, self.size).astype(xp.float32)

    def background_at(self, x, y):
        """Return the background (n,) float64 at pixel positions."""
        return self._terms(x, y, len(self.background)) @ self.background

    def background_image(self, shape):
        """Return the background as a float32 image: exact on a grid of 32 pixels, bilinear between its
        nodes."""
        xp = array_module(self.basis)
        return polynomial_image(lambda x, y: self.background_at(x, y), shape, xp)

    def _terms(self, x, y, count):
        order = int(np.sqrt(2 * count)) - 1 if count > 1 else 0
        return polynomial_terms(*unit_coordinates(x, y, self.shape, array_module(self.basis)), order)


def unit_coordinates(x, y, shape, xp):
    """Map pixel positions to [-1, 1] on an image of ``shape``."""
    half_y, half_x = ((max(n, 2) - 1) / 2 for n in shape)
    x, y = (xp.atleast_1d(xp.asarray(c, dtype=xp.float64)) for c in (x, y))
    return x / half_x - 1, y / half_y - 1


def polynomial_image(function, shape, xp, step=32):
    """Evaluate ``function(x, y)`` on nodes ``step`` pixels apart and join them bilinearly: float32 (ny,
    nx)."""
    rows, columns = (n // step + 2 for n in shape)
    y, x = xp.meshgrid(xp.arange(rows) * step, xp.arange(columns) * step, indexing="ij")
    nodes = function(x.ravel(), y.ravel()).reshape(rows, columns).astype(xp.float32)
    along_y = _between(xp.arange(shape[0]), step, rows, xp)
    along_x = _between(xp.arange(shape[1]), step, columns, xp)
    return along_y @ nodes @ along_x.T


def _between(pixel, step, nodes, xp):
    """(n, nodes) float32 weights of linear interpolation."""
    return xp.maximum(0, 1 - xp.abs(pixel[:, None] / step - xp.arange(nodes)[None, :])).astype(xp.float32)


def fit_matching_kernel(
    source, target, x, y, *, source_fwhm_pix, target_fwhm_pix, size=None, degrees=(4, 2, 2), spatial_order=None,
    background_order=1, constant_scale=True, stamp_pix=None, max_iterations=5, planes=None,
) -> MatchingKernel:  # fmt: skip
    """Fit the kernel that turns ``source`` into ``target`` on stamps around ``x, y``.

    ``source`` and ``target`` are (image, mask, variance) of one shape and grid, (ny, nx) float32, int32,
    float32; ``x, y`` pixel positions of stars or other static sources (neighbours do no harm). Pixels with a
    bit of ``planes`` (default `MaskPlane.unusable`), NaN, or with such a source pixel under the kernel get no
    weight. ``spatial_order`` None lets cross-validation choose among 0..3, and the degree of the basis too; a
    number fixes the order. With ``constant_scale`` the kernel's sum is the same everywhere. Stamps that fit
    badly are clipped and the fit repeated. Float64 throughout.

    Raises UnprocessableError, with counts, when no stamp is usable.
    """
    xp = array_module(source[0])
    shape = source[0].shape
    sigmas = choose_sigmas(source_fwhm_pix, target_fwhm_pix, len(degrees))
    basis = gaussian_basis(sigmas, degrees, size or choose_size(sigmas), xp=xp)
    inner = stamp_pix or 2 * int(np.ceil(3.2 * max(source_fwhm_pix, target_fwhm_pix))) + 1
    planes = MaskPlane.unusable() if planes is None else planes
    stamps = gather_stamps(source, target, x, y, basis, inner, int(planes))
    if stamps.count == 0:
        raise UnprocessableError(f"no usable star among {len(x)} for the matching kernel: {stamps.why()}")
    u, v = unit_coordinates(stamps.x, stamps.y, shape, xp)
    candidates = _candidates(basis, stamps.count, spatial_order, background_order)
    fit = fit_stamps(stamps, u, v, candidates, constant_scale=constant_scale, max_iterations=max_iterations)
    coefficients, background = fit.unpack()
    used = basis.images[: len(coefficients)]
    return MatchingKernel(used, coefficients, background, shape, fit.diagnostics())


def _candidates(basis: GaussianBasis, stamps: int, spatial_order, background_order) -> list[Candidate]:
    """The models to choose among: never more terms in the plane than stars can hold."""
    allowed = [o for o in range(4) if stamps >= 2 * (o + 1) * (o + 2) // 2 or o == 0]
    orders = [o for o in allowed if spatial_order is None or o <= spatial_order]
    orders = orders if spatial_order is None else orders[-1:]
    sky = min(background_order, allowed[-1])
    degrees = sorted({2, max(basis.degrees)}) if stamps >= 5 else [min(2, max(basis.degrees))]
    return [Candidate(basis.count_to_degree(d), o, sky) for o in orders for d in degrees]
