"""The PSF of an image that was convolved or warped: a new `PsfModel` from the old one and what was done."""

from __future__ import annotations

import functools

import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.convolution import tile_centres
from nightstream.kernels.psf import LANCZOS_ORDER, PsfModel, lanczos, polynomial_terms
from nightstream.kernels.target import array_module, scipy_module
from nightstream.kernels.warp import check_grid

MAX_NODES = 12  # positions an axis at which the product is sampled
WARP_NODES = 6  # the same for a warp, which is smoother than matching kernels
TABLE_STEPS = 256  # a pixel of the resampling window's table; linear between: error (1 / 256)^2 / 8 * pi^2 / 3 = 6e-6
TABLE_PHASES = 16  # sub-pixel phases over which that window is averaged


def convolve_psf(psf: PsfModel, kernels, shape, tile_pix, *, order=None) -> PsfModel:
    """Return the PSF of an image of ``shape`` and ``psf`` after `convolve_plane` with ``kernels`` (ty, tx, k,
    k).

    The product is sampled at tile centres and fitted by a polynomial of ``order`` (default: the PSF's, at
    least 2, fewer when there are fewer tiles). Stamps keep their size; light pushed out of them is lost and
    the sum brought back to 1.
    """
    xp = array_module(kernels)
    x, y = tile_centres(shape, tile_pix, xp=xp)
    picks = [xp.unique(xp.linspace(0, n - 1, min(n, MAX_NODES)).astype(xp.int64)) for n in x.shape]
    nodes = picks[0][:, None], picks[1][None, :]
    x, y, kernels = x[nodes].ravel(), y[nodes].ravel(), kernels[nodes].reshape(-1, *kernels.shape[2:])
    stamps = convolve_same(psf.centred_float64(x, y), kernels)
    return _through_stamps(stamps, x, y, shape, _affordable(max(psf.order, 2) if order is None else order, picks))


def warp_psf(psf: PsfModel, map_x, map_y, step, shape, *, order=3) -> PsfModel:
    """Return the PSF, in output pixels, of an image of ``psf`` after `warp` with a Lanczos kernel of ``order`` lobes.

    ``map_x, map_y, step, shape`` are those given to `warp`: the local Jacobian of the map scales, turns and shears
    the PSF. The smoothing by the Lanczos kernel depends on where a source lies between the input's pixels; taken is
    the mean over all such phases (a warp of one phase is within 0.7 % of the peak of it at FWHM 2.8). Stamps sum to 1
    and cover about the sky area of the old ones, so their size follows the scale. The product is sampled at up to 6 x
    6 places and fitted by a polynomial in output pixels, of the PSF's order and at least 2. Where the map leaves the
    area ``psf`` was fitted on, the PSF of its border counts: a polynomial means nothing beyond. Raises InputError
    when the map is not finite.
    """
    xp = array_module(map_x)
    check_grid(map_x, map_y, step, shape)
    cells = [xp.unique(xp.linspace(0, n - 2, min(n - 1, WARP_NODES)).astype(xp.int64)) for n in map_x.shape]
    rows, columns = (c.ravel() for c in xp.meshgrid(*cells, indexing="ij"))
    source = [_centre_of_cells(grid, rows, columns) for grid in (map_x, map_y)]
    jacobian = xp.stack([_slopes(grid, rows, columns, step) for grid in (map_x, map_y)], axis=1)
    if not bool(xp.isfinite(jacobian).all()):
        raise InputError(f"the map of shape {map_x.shape} is not finite everywhere")
    inside = (
        xp.clip(s, centre - scale, centre + scale) if psf.order > 0 else s
        for s, centre, scale in zip(source, (psf.x_centre, psf.y_centre), (psf.x_scale, psf.y_scale), strict=True)
    )  # fmt: skip
    stamps = resample_stamps(psf.centred_float64(*inside), jacobian, order)
    x, y = (columns + 0.5) * step, (rows + 0.5) * step
    return _through_stamps(stamps, x, y, shape, _affordable(max(psf.order, 2), cells))


def resample_stamps(stamps, jacobian, order):
    """Return ``stamps`` (n, s, s) as they look after resampling through ``jacobian`` (n, 2, 2), unit sums, float64.

    ``jacobian`` is d(x, y of the input) / d(x, y of the output). The half width of the result is that of the stamps
    divided by the mean scale, rounded.
    """
    xp = array_module(stamps)
    size = stamps.shape[-1]
    area = xp.abs(jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0])
    half = max(1, round(size // 2 / float(xp.median(area)) ** 0.5))
    offset = xp.arange(-half, half + 1).astype(xp.float64)
    dy, dx = (d.ravel() for d in xp.meshgrid(offset, offset, indexing="ij"))
    across, up = (jacobian[:, axis, :1] * dx + jacobian[:, axis, 1:] * dy for axis in range(2))
    table = xp.asarray(resampling_table(order))
    resampled = (stamps @ table_rows(table, across, size) * table_rows(table, up, size)).sum(axis=1)
    return (resampled / resampled.sum(axis=1, keepdims=True)).reshape(len(stamps), 2 * half + 1, 2 * half + 1)


@functools.cache
def resampling_table(order) -> np.ndarray:
    """Return the window through which a resampled image shows a PSF, `TABLE_STEPS` values a pixel from its middle on.

    A PSF on pixels is the continuous one of its Lanczos-7 interpolation; sampled at a phase and interpolated with
    ``order`` lobes, both as normalised as there, it appears convolved with this: the mean over phases.
    """
    phase = ((np.arange(TABLE_PHASES) + 0.5) / TABLE_PHASES)[:, None, None]
    pixel = np.arange(-LANCZOS_ORDER, LANCZOS_ORDER + 2)
    distance = np.arange((order + LANCZOS_ORDER) * TABLE_STEPS + 2)[:, None] / TABLE_STEPS
    windows = _unit_lanczos(pixel - phase, LANCZOS_ORDER) * _unit_lanczos(distance + phase - pixel, order)
    return windows.sum(axis=2).mean(axis=0)


def _unit_lanczos(distance, order):
    """The Lanczos window divided by its sum over all pixels at the same phase."""
    phase = distance - np.rint(distance)
    return lanczos(distance, order) / sum(lanczos(phase - k, order) for k in range(-order, order + 1))


def table_rows(table, position, size):
    """Return (n, size, m) values of the window between rows of ``size`` pixels and ``position`` (n, m) from their
    middle."""
    xp = array_module(position)
    pixel = xp.arange(size) - size // 2
    place = xp.minimum(xp.abs(position[:, None, :] - pixel[:, None]) * TABLE_STEPS, len(table) - 2)
    row = place.astype(xp.int64)
    return table[row] + (place - row) * (table[row + 1] - table[row])


def _centre_of_cells(grid, rows, columns):
    corners = (grid[rows, columns], grid[rows, columns + 1], grid[rows + 1, columns], grid[rows + 1, columns + 1])
    return sum(corners) / 4


def _slopes(grid, rows, columns, step):
    """(n, 2) derivatives of a map along output x and y in the middle of its cells."""
    xp = array_module(grid)
    along = grid[rows, columns + 1] - grid[rows, columns] + grid[rows + 1, columns + 1] - grid[rows + 1, columns]
    down = grid[rows + 1, columns] - grid[rows, columns] + grid[rows + 1, columns + 1] - grid[rows, columns + 1]
    return xp.stack([along, down], axis=1) / (2 * step)


def _through_stamps(stamps, x, y, shape, order) -> PsfModel:
    """The model of ``order`` over an image of ``shape`` that fits ``stamps`` (n, size, size) at ``x, y`` best."""
    xp = array_module(stamps)
    size = stamps.shape[-1]
    half_y, half_x = ((max(n, 2) - 1) / 2 for n in shape)
    terms = polynomial_terms(x / half_x - 1, y / half_y - 1, order)
    coefficients = xp.linalg.lstsq(terms, stamps.reshape(len(x), -1), rcond=None)[0]
    return PsfModel(coefficients.reshape(-1, size, size), order, half_x, half_y, half_x, half_y)


def _affordable(order, picks) -> int:
    return min(order, *(len(p) - 1 for p in picks))


def convolve_same(stamps, kernels):
    """Convolve ``stamps`` (n, s, s) each with its own of ``kernels`` (n, k, k); same size, float64, unit
    sums."""
    xp = array_module(stamps)
    fft = scipy_module(xp, "fft")
    s, k = stamps.shape[-1], kernels.shape[-1]
    grid = (fft.next_fast_len(s + k - 1, real=True),) * 2
    product = fft.irfft2(fft.rfft2(stamps, grid) * fft.rfft2(kernels.astype(np.float64), grid), grid)
    same = product[:, k // 2 : k // 2 + s, k // 2 : k // 2 + s]
    return same / same.sum(axis=(1, 2), keepdims=True)
