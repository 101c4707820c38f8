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

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.convolution import Part, linear_kernels, linear_parts, tile_centres
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.matching_basis import (
    KernelBasis,
    choose_delta_size,
    choose_sigmas,
    choose_size,
    delta_basis,
    gaussian_basis,
)
from nightstream.kernels.matching_fit import Candidate, fit_stamps, order_of, term_count
from nightstream.kernels.matching_stamps import gather_stamps
from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.target import array_module

MIN_SCALE_SIGMA = 5.0  # errors by which the photometric scale must be positive: 20 % is no photometry, but still a match


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
        terms = self._terms(x, y, self.coefficients.shape[1])
        return (terms @ self.coefficients.T @ self.basis.reshape(len(self.basis), -1)).reshape(-1, *self.basis.shape[1:])

    def tile_kernels(self, shape, tile_pix):
        """Return (tiles_y, tiles_x, size, size) float32 kernels at the centres of the tiles of ``shape``."""
        xp = array_module(self.basis)
        x, y = tile_centres(shape, tile_pix, xp=xp)
        kernels = self.kernel_at(x.ravel(), y.ravel())
        return kernels.reshape(*x.shape, self.size, self.size).astype(xp.float32)

    def convolution_parts(self, plane, tile_pix) -> list[Part]:
        """Return what `convolve_parts` needs to convolve ``plane`` (ny, nx) with this kernel.

        The kernel belongs to the *source* pixel, as a star's light does to the star, and is linear in its position
        within a tile: the kernel at the tile's centre and its two gradients.
        """
        xp = array_module(self.basis)
        kernels = linear_kernels(self.kernel_at, plane.shape, tile_pix, xp=xp)
        return linear_parts(plane, tuple(k.astype(xp.float32) for k in kernels))

    def background_at(self, x, y):
        """Return the background (n,) float64 at pixel positions."""
        return self._terms(x, y, len(self.background)) @ self.background

    def background_image(self, shape):
        """Return the background as a float32 image: exact on a grid of 32 pixels, bilinear between its
        nodes."""
        xp = array_module(self.basis)
        return polynomial_image(lambda x, y: self.background_at(x, y), shape, xp)

    def _terms(self, x, y, count):
        return polynomial_terms(*unit_coordinates(x, y, self.shape, array_module(self.basis)), order_of(count))


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
    source, target, x, y, *, source_fwhm_pix, target_fwhm_pix, basis="gaussian", size=None, degrees=(4, 2, 2, 2),
    spatial_order=None, background_order=1, constant_scale=True, stamp_pix=None, max_iterations=8, planes=None,
) -> MatchingKernel:  # fmt: skip
    """Fit the kernel that turns ``source`` into ``target`` on stamps around ``x, y``.

    ``source`` and ``target`` are (image, mask, variance) of one shape and grid, (ny, nx) float32, int32,
    float32; ``x, y`` pixel positions of stars or other static sources, best ones first: of those whose stamps would
    overlap by more than half the first is taken (other neighbours do no harm). Pixels with a bit of ``planes`` (default
    `MaskPlane.unusable`), NaN, or with such a source pixel under the kernel get no weight. ``basis`` is "gaussian" (of
    ``degrees``) or "delta", single pixels. ``size`` None chooses the kernel's side from the PSF sizes. ``spatial_order``
    None lets cross-validation choose among 0..3, and the degree of the basis too; a number fixes the order. Within
    the model so chosen, priors whose widths maximise the marginal likelihood hold back what the stars do not ask for.
    With ``constant_scale`` the kernel's sum is the same everywhere. Stars that changed between the images, and what else
    does not fit, are left out and the fit repeated. Float64 throughout.

    Raises UnprocessableError, with counts, when no stamp is usable, or all of them too faint to tell the scale.
    """
    xp = array_module(source[0])
    shape = source[0].shape
    functions = choose_basis(basis, source_fwhm_pix, target_fwhm_pix, size, degrees, xp)
    inner = stamp_pix or 2 * int(np.ceil(3.2 * max(source_fwhm_pix, target_fwhm_pix))) + 1
    planes = MaskPlane.unusable() if planes is None else planes
    lone = thin(x, y, inner / 2)
    stamps = gather_stamps(source, target, np.asarray(x)[lone], np.asarray(y)[lone], functions, inner, int(planes))
    if stamps.count == 0:
        raise UnprocessableError(f"no usable star among {len(x)} for the matching kernel: {stamps.why()}")
    u, v = unit_coordinates(stamps.x, stamps.y, shape, xp)
    fit = fit_stamps(
        stamps, u, v, functions, _candidates(functions, stamps.count, spatial_order, background_order),
        constant_scale=constant_scale, fwhm_pix=target_fwhm_pix, max_iterations=max_iterations,
    )  # fmt: skip
    if not fit.scale > MIN_SCALE_SIGMA * fit.scale_error:
        raise UnprocessableError(
            f"the {stamps.count} usable stars do not say how bright one image is against the other: "
            f"{fit.scale:.3g} +- {fit.scale_error:.2g}"
        )
    coefficients, background = fit.unpack()
    used = functions.images[: len(coefficients)]
    return MatchingKernel(used, coefficients, background, shape, fit.diagnostics())


def choose_basis(kind: str, source_fwhm_pix, target_fwhm_pix, size, degrees, xp) -> KernelBasis:
    """Return the basis of ``kind`` for PSFs of these sizes; raises InputError for an unknown kind."""
    sigmas = choose_sigmas(source_fwhm_pix, target_fwhm_pix, len(degrees))
    if kind == "gaussian":
        return gaussian_basis(sigmas, degrees, size or choose_size(max(source_fwhm_pix, target_fwhm_pix)), xp=xp)
    if kind == "delta":
        return delta_basis(size or choose_delta_size(choose_sigmas(source_fwhm_pix, target_fwhm_pix)), xp=xp)
    raise InputError(f"basis of the matching kernel must be 'gaussian' or 'delta', got {kind!r}")


def thin(x, y, distance) -> np.ndarray:
    """Return the indices of the positions (host) that have no earlier kept one within ``distance``, in their order."""
    cells: dict[tuple[int, int], list[int]] = {}
    kept = []
    for i, (px, py) in enumerate(zip(np.asarray(x, float), np.asarray(y, float), strict=True)):
        if not (np.isfinite(px) and np.isfinite(py)):
            continue
        column, row = int(px // distance), int(py // distance)
        near = [j for dy in (-1, 0, 1) for dx in (-1, 0, 1) for j in cells.get((row + dy, column + dx), ())]
        if all((x[j] - px) ** 2 + (y[j] - py) ** 2 >= distance**2 for j in near):
            cells.setdefault((row, column), []).append(i)
            kept.append(i)
    return np.asarray(kept, dtype=int)


def _candidates(basis: KernelBasis, stamps: int, spatial_order, background_order) -> list[Candidate]:
    """The models to choose among: never more terms in the plane than stars can hold."""
    allowed = [o for o in range(4) if stamps >= 2 * term_count(o) or o == 0]
    orders = [o for o in allowed if spatial_order is None or o <= spatial_order]
    orders = orders if spatial_order is None else orders[-1:]
    sky = min(background_order, allowed[-1])
    highest = max(basis.degrees)
    degrees = sorted({min(2, highest), highest}) if stamps >= 5 else [min(2, highest)]
    return [Candidate(basis.count_to_degree(d), o, sky) for o in orders for d in degrees]
