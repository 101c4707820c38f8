"""Fit a `PsfModel` to stars: pixels that vary as polynomials, forward modelled at every star's phase."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.psf import (
    PsfModel,
    polynomial_exponents,
    polynomial_terms,
    shift_matrices,
    shift_stamps,
    unit_sum,
)
from nightstream.kernels.target import array_module

STARS_PER_TERM = 2  # the polynomial's order is lowered until every term has this many stars
PRIOR_RELATIVE = 0.2  # 1 sigma freedom of a pixel around the smooth start, as a fraction of its value there
PRIOR_FLOOR = 2e-4  # and as a fraction of the peak
SOFTENING = 0.02  # error assumed of any pixel as a fraction of the star's own light: bright stars do not rule
GRADIENT_STEP = 0.05  # pixels, for numerical derivatives of a shifted stamp
# Centre and 1 sigma of (log radius, log(beta - 1), e1, e2): radius free, exponent near 3.2.
MOFFAT_PRIOR = ((0.0, 0.8, 0.0, 0.0), (100.0, 0.5, 0.15, 0.15))
MAX_MASKED_FRACTION = 0.1  # of the Gaussian weight on a star
DEFAULT_PLANES = MaskPlane.unusable()


class StarStamps(NamedTuple):
    """What is fixed during the fit: (n, size, size) float64 pixels and where their middle pixels lie."""

    data: Any
    good: Any  # 1.0 where the pixel may be used
    base_variance: Any  # (n,) variance without the star's own light
    variance_per_unit: Any  # (n,) variance added by a unit of light
    x_pixel: Any
    y_pixel: Any


class StarState(NamedTuple):
    """What the fit improves: (n,) fluxes, offsets from the middle pixel, chi squared per pixel."""

    flux: Any
    dx: Any
    dy: Any
    chi2: Any


def fit_psf(
    image,
    mask,
    variance,
    x,
    y,
    *,
    size: int = 25,
    order: int = 2,
    planes: MaskPlane = DEFAULT_PLANES,
    iterations: int = 4,
    rejection_sigma: float = 4.0,
) -> tuple[PsfModel, Any]:
    """Fit a spatially varying PSF to the stars at ``x, y`` (n,), and say which of them were used.

    ``image`` (background subtracted), ``variance`` float32 and ``mask`` int32 are (ny, nx). Pixels with
    ``planes`` or not finite are left out. Returns the `PsfModel` of ``size`` pixels and a bool array (n,).

    The start is one elliptical Moffat profile for all; then, ``iterations`` times, fluxes and positions of
    the stars and all pixels of the model are fitted by weighted least squares, stars whose residuals are
    ``rejection_sigma`` (robust) above the others' are left out. Pixels are held to the start with a
    Gaussian prior of 20 % of their value: where stars say little (wings, few or faint stars) the model
    stays smooth, and its noise does not bias fluxes. The variance of a star's own light is taken from the
    model, not from its noisy pixels. ``order`` is lowered until each term has two stars, so one star gives
    a constant PSF.

    Raises `UnprocessableError` when no star can be used.
    """
    xp = array_module(image)
    if size % 2 == 0 or size < 7:
        raise InputError(f"PSF size must be odd and at least 7, got {size}")
    x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
    start = gaussian_moments(image, mask, variance, x, y, half_size=size // 2, planes=planes)
    index = xp.flatnonzero(usable_stars(image.shape, start, size))
    if index.size == 0:
        raise UnprocessableError(f"no usable star for the PSF among {x.size} given")
    stars = cut_stars(image, mask, variance, start["x"][index], start["y"][index], size, planes)
    ny, nx = image.shape
    frame = {"x_centre": (nx - 1) / 2, "y_centre": (ny - 1) / 2, "x_scale": nx / 2, "y_scale": ny / 2}
    offsets = start["x"][index] - stars.x_pixel, start["y"][index] - stars.y_pixel
    state, smooth = fit_smooth_start(stars, *offsets, float(xp.median(start["sigma_pix"][index])))
    u = (stars.x_pixel - frame["x_centre"]) / frame["x_scale"]
    v = (stars.y_pixel - frame["y_centre"]) / frame["y_scale"]
    coefficients, order, kept = fit_pixels(stars, state, smooth, u, v, order, iterations, rejection_sigma)
    psf = PsfModel(coefficients, order, **frame)
    used = xp.zeros(x.size, dtype=bool)
    used[index[kept]] = True
    return psf, used


def usable_stars(shape, moments, size):
    """Return which sources converged, lie wholly inside the image and are hardly masked."""
    xp = array_module(moments["x"])
    half, (ny, nx) = size // 2, shape
    column, row = (xp.rint(xp.nan_to_num(moments[name], nan=-1.0)) for name in ("x", "y"))
    inside = (column >= half) & (column < nx - half) & (row >= half) & (row < ny - half)
    return inside & (moments["flux"] > 3 * moments["flux_err"]) & (moments["masked_fraction"] < MAX_MASKED_FRACTION)


def cut_stars(image, mask, variance, x, y, size, planes) -> StarStamps:
    """Cut the stars out, and split their variance into background and light (a straight line)."""
    xp = array_module(image)
    half = size // 2
    column, row = xp.rint(x).astype(xp.int64), xp.rint(y).astype(xp.int64)
    offset = xp.arange(-half, half + 1)
    at = (row[:, None, None] + offset[None, :, None], column[:, None, None] + offset[None, None, :])
    data, noise = image[at].astype(xp.float64), variance[at].astype(xp.float64)
    good = ((mask[at] & int(planes)) == 0) & xp.isfinite(data) & xp.isfinite(noise) & (noise > 0)
    data, noise = xp.where(good, data, 0.0), xp.where(good, noise, 0.0)
    n_good = good.sum(axis=(1, 2))
    mean = data.sum(axis=(1, 2)) / n_good
    mean_noise = noise.sum(axis=(1, 2)) / n_good
    deviation = xp.where(good, data - mean[:, None, None], 0.0)
    slope = (deviation * noise).sum(axis=(1, 2)) / (deviation**2).sum(axis=(1, 2))
    slope = xp.clip(slope, 0.0, None)
    base = xp.maximum(mean_noise - slope * mean, 0.1 * mean_noise)
    return StarStamps(data, good.astype(xp.float64), base, slope, column.astype(xp.float64), row.astype(xp.float64))


def fit_smooth_start(stars, dx, dy, sigma) -> tuple[StarState, Any]:
    """Return the stars' first parameters and one elliptical Moffat stamp that fits them all."""
    xp = array_module(dx)
    state = StarState(xp.zeros_like(dx), dx, dy, xp.zeros_like(dx))
    stamp = xp.asarray(PsfModel.gaussian(sigma, stars.data.shape[-1]).coefficients[0])
    for _ in range(3):
        state = fit_star_parameters(stars, state, xp.broadcast_to(stamp, stars.data.shape), repeats=3)
        stamp = fit_moffat(stack_stars(stars, state), stack_noise(stars, state), sigma)
    return fit_star_parameters(stars, state, xp.broadcast_to(stamp, stars.data.shape), repeats=3), stamp


def fit_pixels(stars, state, smooth, u, v, order, iterations, rejection_sigma):
    """Alternate between the model's pixels and the stars' parameters.

    Returns the coefficients, the order that the number of stars allowed, and which stars were kept (n,).
    """
    xp = array_module(u)
    for _ in range(iterations):
        kept = keep_typical(state, rejection_sigma)
        order = affordable_order(int(kept.sum()), order)
        terms = polynomial_terms(u, v, order)
        coefficients = solve_pixels(stars, state, terms, kept, smooth)
        size = smooth.shape[-1]
        model = unit_sum((terms @ coefficients.reshape(len(coefficients), -1)).reshape(-1, size, size))
        state = fit_star_parameters(stars, state, model, repeats=2)
    return coefficients, order, xp.asarray(kept)


def affordable_order(n_stars: int, order: int) -> int:
    """Return the highest order up to ``order`` whose terms each have `STARS_PER_TERM` stars."""
    while order > 0 and len(polynomial_exponents(order)) * STARS_PER_TERM > n_stars:
        order -= 1
    return order


def keep_typical(state: StarState, rejection_sigma: float):
    """Return which stars have positive flux, a sane place and residuals like the others'."""
    xp = array_module(state.flux)
    median = xp.median(state.chi2)
    sigma = 1.4826 * xp.median(xp.abs(state.chi2 - median))
    near = (xp.abs(state.dx) < 2) & (xp.abs(state.dy) < 2)
    kept = (state.chi2 <= median + rejection_sigma * xp.maximum(sigma, 0.05 * median)) & (state.flux > 0) & near
    if not bool(kept.any()):
        raise UnprocessableError(f"no usable star for the PSF: all {kept.size} fits failed")
    return kept


def weights(stars: StarStamps, model, flux):
    """Return inverse variances (n, size, size): background, the light of the *model*, and the softening."""
    xp = array_module(model)
    light = xp.maximum(flux, 0.0)[:, None, None] * xp.maximum(model, 0.0)
    base, per_unit = stars.base_variance[:, None, None], stars.variance_per_unit[:, None, None]
    return stars.good / (base + per_unit * light + (SOFTENING * light) ** 2)


def fit_star_parameters(stars: StarStamps, state: StarState, model, *, repeats: int) -> StarState:
    """Fit flux and position of every star, given its centred ``model`` stamp, by Gauss-Newton."""
    xp = array_module(model)
    flux, dx, dy = state.flux, state.dx, state.dy
    for _ in range(repeats):
        moved = shift_stamps(model, dx, dy)
        weight = weights(stars, moved, flux)
        along_x = shift_stamps(model, dx + GRADIENT_STEP, dy) - shift_stamps(model, dx - GRADIENT_STEP, dy)
        along_y = shift_stamps(model, dx, dy + GRADIENT_STEP) - shift_stamps(model, dx, dy - GRADIENT_STEP)
        design = xp.stack([moved, along_x / (2 * GRADIENT_STEP), along_y / (2 * GRADIENT_STEP)], axis=1)
        design = design.reshape(*design.shape[:2], -1)
        weighted = design * weight.reshape(len(weight), 1, -1)
        target = weighted @ stars.data.reshape(len(weight), -1, 1)
        normal = weighted @ design.transpose(0, 2, 1)
        solution = xp.linalg.solve(normal, target)[:, :, 0]
        flux = solution[:, 0]
        step = solution[:, 1:] / xp.where(flux == 0, 1.0, flux)[:, None]
        step = xp.clip(xp.nan_to_num(step), -0.5, 0.5)
        dx, dy = xp.clip(dx + step[:, 0], -2.5, 2.5), xp.clip(dy + step[:, 1], -2.5, 2.5)
    moved = shift_stamps(model, dx, dy)
    weight = weights(stars, moved, flux)
    flux = (weight * moved * stars.data).sum(axis=(1, 2)) / (weight * moved**2).sum(axis=(1, 2))
    residual = stars.data - flux[:, None, None] * moved
    chi2 = (weight * residual**2).sum(axis=(1, 2)) / stars.good.sum(axis=(1, 2))
    return StarState(flux, dx, dy, chi2)


def stack_stars(stars: StarStamps, state: StarState):
    """Return the median (size, size) of the stars, each divided by its flux and moved to the middle."""
    xp = array_module(state.flux)
    bright = state.flux > 0
    scaled = stars.data[bright] / state.flux[bright][:, None, None]
    moved = shift_stamps(scaled, -state.dx[bright], -state.dy[bright])
    if len(moved) == 0:
        raise UnprocessableError(f"no usable star for the PSF: none of {state.flux.size} has positive flux")
    return xp.median(moved, axis=0)


def stack_noise(stars: StarStamps, state: StarState) -> float:
    """Return the background's standard deviation in a pixel of `stack_stars`."""
    bright = state.flux > 0
    information = float((state.flux[bright] ** 2 / stars.base_variance[bright]).sum())
    return information**-0.5


def moffat(parameters, size: int):
    """Return the elliptical Moffat stamp of ``parameters`` (log radius, log(beta - 1), e1, e2), sum 1."""
    xp = array_module(parameters)
    offset = xp.arange(size) - size // 2
    dx, dy = offset[None, :], offset[:, None]
    radius, beta = xp.exp(parameters[0]), 1 + xp.exp(parameters[1])
    q = (1 + parameters[2]) * dx**2 + (1 - parameters[2]) * dy**2 + 2 * parameters[3] * dx * dy
    stamp = (1 + q / (radius * radius)) ** -beta  # radius**2 would round in another way for a scalar than for an array
    return stamp / stamp.sum()


def fit_moffat(stamp, noise: float, sigma: float, *, iterations: int = 25):
    """Return the elliptical Moffat stamp nearest to ``stamp`` (size, size): damped Gauss-Newton.

    Weights follow ``noise`` and `SOFTENING`; a prior on the exponent and the ellipticity (`MOFFAT_PRIOR`)
    decides where the stamp's noise leaves them open.
    """
    xp = array_module(stamp)
    size, step = stamp.shape[-1], 1e-4
    centre, width = (xp.asarray(values) for values in MOFFAT_PRIOR)
    unit = xp.eye(4)
    now = centre + unit[0] * np.log(2.0 * sigma)
    low, high = xp.asarray([-1.0, -0.5, -0.7, -0.7]), xp.asarray([np.log(4.0 * size), 3.5, 0.7, 0.7])
    stiffness = xp.diag(xp.concatenate([xp.zeros(1), width**-2.0]))
    for _ in range(iterations):
        model = moffat(now, size)
        changes = [(moffat(now + step * unit[k], size) - model).ravel() / step for k in range(4)]
        design = xp.stack([model.ravel(), *changes], axis=1)
        weighted = design / (noise**2 + (SOFTENING * model) ** 2).reshape(-1, 1)
        normal = weighted.T @ design + stiffness
        normal = normal + 1e-3 * xp.diag(xp.diagonal(normal))
        pull = stiffness @ xp.concatenate([xp.zeros(1), now - centre])
        change = xp.linalg.solve(normal, weighted.T @ (stamp - model).ravel() - pull)
        now = xp.clip(now + xp.clip(change[1:], -0.3, 0.3), low, high)
    return moffat(now, size)


def solve_pixels(stars, state, terms, kept, smooth, *, iterations: int = 25):
    """Return the coefficients (n_terms, size, size) that fit the kept stars, held to ``smooth`` by the prior.

    Conjugate gradients on the normal equations in units of the prior's sigma, preconditioned with their
    diagonal.
    """
    xp = array_module(terms)
    size, n_terms = smooth.shape[-1], terms.shape[1]
    across, up = shift_matrices(state.dx, size), shift_matrices(state.dy, size)
    across_t, up_t = across.transpose(0, 2, 1), up.transpose(0, 2, 1)
    start = xp.broadcast_to(smooth, stars.data.shape)
    weight = weights(stars, up @ start @ across_t, state.flux) * kept[:, None, None]
    flux = state.flux[:, None, None]
    prior = PRIOR_RELATIVE * smooth + PRIOR_FLOOR * smooth.max()

    def predict(z):
        stamps = (terms @ (z * prior).reshape(n_terms, -1)).reshape(-1, size, size)
        return flux * (up @ stamps @ across_t)

    def adjoint(residual):
        stamps = up_t @ (flux * weight * residual) @ across
        return (terms.T @ stamps.reshape(len(stamps), -1)).reshape(n_terms, size, size) * prior

    information = (terms.T**2 @ (flux**2 * weight).reshape(len(flux), -1)).reshape(n_terms, size, size)
    right = adjoint(stars.data - flux * (up @ start @ across_t))
    z = conjugate_gradients(lambda z: adjoint(predict(z)) + z, right, 1 + prior**2 * information, iterations)
    coefficients = z * prior
    coefficients[0] += smooth
    sums = coefficients.sum(axis=(1, 2))
    coefficients[1:] -= (sums[1:] / sums[0])[:, None, None] * coefficients[0]
    return coefficients / sums[0]


def conjugate_gradients(apply, right, diagonal, iterations: int):
    """Solve ``apply(z) = right`` for a symmetric positive ``apply``, preconditioned by ``diagonal``."""
    xp = array_module(right)
    z, residual = xp.zeros_like(right), right
    scaled = residual / diagonal
    direction, product = scaled, (residual * scaled).sum()
    for _ in range(iterations):
        image = apply(direction)
        length = product / xp.maximum((direction * image).sum(), 1e-300)
        z, residual = z + length * direction, residual - length * image
        scaled = residual / diagonal
        previous, product = product, (residual * scaled).sum()
        direction = scaled + product / xp.maximum(previous, 1e-300) * direction
    return z
