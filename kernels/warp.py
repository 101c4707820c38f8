"""Resampling onto another pixel grid: Lanczos interpolation of image, mask and variance, and the noise
correlation it leaves.

Positions come as a coarse grid of source-pixel coordinates (bilinear between its nodes), so that a WCS is
evaluated a few thousand times and not once per pixel.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import prange

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

PHASES = 1024  # rows of the weight table per pixel; linear between rows: error pi^2 / (8 * 1024^2) ~ 1e-6
GAIN_PHASES = 16  # nodes per pixel of the table that corrects the variance for correlated input noise
MAX_ORDER = 5  # a CUDA thread keeps the weights of one support
MEANINGFUL_WEIGHT = 1e-3  # a missing or flagged source pixel below this |weight| does not harm the output
MAP_QUANTUM_PIX = 2.0**-20  # grids are rounded to this, so that equal WCSs give exactly the identity
_NO_DATA = np.int32(MaskPlane.NO_DATA)


def warp(image, mask, variance, map_x, map_y, step, shape, *, order=3, conserve_flux=True, noise_correlation=None) -> tuple:
    """Resample three planes with a Lanczos kernel of ``order`` lobes.

    ``image, mask, variance`` are (ny_in, nx_in) float32, int32, float32; ``map_x, map_y`` float64 grids as
    `warp_grid` makes: node (j, i) holds the source-pixel coordinates of output pixel (y, x) = (j * step, i *
    step). Returns the planes of ``shape`` (ny, nx). Weights sum to 1 per pixel; with ``conserve_flux`` the
    value is multiplied by the local area ratio (Jacobian), so that counts are conserved; variance is sum(w^2
    variance), times Jacobian squared.

    Where a source pixel of |weight| > 1e-3 is NaN, NO_DATA or outside, the output is NaN with NO_DATA; other
    mask planes are OR-ed over the pixels of such weight. ``noise_correlation`` is the (odd, odd)
    autocorrelation stamp of the input noise (centre 1): the variance then includes the input's covariance. A
    null warp returns the input bit for bit. Positions float64, weights and sums float32 in a fixed order.
    """
    xp = array_module(image)
    ny, nx = shape
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"Lanczos order must be 1 to {MAX_ORDER}, got {order}")
    check_grid(map_x, map_y, step, shape)
    planes = xp.empty(shape, xp.float32), xp.empty(shape, xp.int32), xp.empty(shape, xp.float32)
    lanczos_warp(
        Launch.over(shape),
        *(xp.ascontiguousarray(a, t) for a, t in zip((image, mask, variance), (xp.float32, xp.int32, xp.float32), strict=True)),
        *(xp.ascontiguousarray(grid, xp.float64) for grid in (map_x, map_y)),
        xp.asarray(weight_table(order)),
        xp.asarray(variance_gain_table(order, noise_correlation)),
        np.int32(step),
        np.int32(order),
        np.int32(bool(conserve_flux)),
        *(np.int32(n) for n in (*image.shape, map_x.shape[1], ny, nx)),
        *planes,
    )
    return planes


def check_grid(map_x, map_y, step, shape) -> None:
    """Raise ValueError unless the two grids cover ``shape`` with nodes every ``step`` pixels."""
    wanted = grid_shape(shape, step)
    if map_x.shape != wanted or map_y.shape != wanted:
        raise ValueError(f"maps of shape {map_x.shape} and {map_y.shape}, wanted {wanted} for {shape} at step {step}")


def grid_shape(shape, step) -> tuple[int, int]:
    """(rows, columns) of the grid that covers an image of ``shape`` with nodes every ``step`` pixels."""
    return tuple(max(n - 1, 0) // step + 2 for n in shape)


def warp_grid(wcs_out, wcs_in, shape, step, *, xp=np) -> tuple:
    """Return ``map_x, map_y``: where pixels of the output (``wcs_out``, ``shape``) lie in the input
    (``wcs_in``), float64."""
    rows, columns = grid_shape(shape, step)
    y, x = xp.meshgrid(xp.arange(rows) * float(step), xp.arange(columns) * float(step), indexing="ij")
    source_x, source_y = wcs_in.pixel_from_sky(*wcs_out.sky_from_pixel(x, y))
    return tuple(xp.round(c / MAP_QUANTUM_PIX) * MAP_QUANTUM_PIX for c in (source_x, source_y))


def lanczos_weights(fraction, order) -> np.ndarray:
    """Return (n, 2 order) weights of pixels floor(x) - order + 1 .. floor(x) + order for phases ``fraction``
    in [0, 1].

    L(t) = sinc(t) sinc(t / order), normalised to sum 1 (float64). Phase 0 is exactly one pixel.
    """
    t = np.asarray(fraction, np.float64)[:, None] - np.arange(1 - order, order + 1)
    weights = np.sinc(t) * np.sinc(t / order)
    weights[np.abs(t) >= order] = 0.0
    whole = t == np.round(t)
    weights[whole] = np.where(t[whole] == 0, 1.0, 0.0)
    return weights / weights.sum(1, keepdims=True)


@functools.cache
def weight_table(order) -> np.ndarray:
    """The weights at PHASES + 1 phases, float32; between its rows the kernel interpolates linearly."""
    return lanczos_weights(np.arange(PHASES + 1) / PHASES, order).astype(np.float32)


def variance_gain_table(order, correlation) -> np.ndarray:
    """Ratio of the true variance to sum(w^2) for phases (y, x), (GAIN_PHASES + 1, same); ones for white
    input noise."""
    nodes = GAIN_PHASES + 1
    if correlation is None:
        return np.ones((nodes, nodes), np.float32)
    weights = lanczos_weights(np.arange(nodes) / GAIN_PHASES, order)
    lags = np.stack([_autocorrelation(w) for w in weights])  # (phase, lag)
    stamp = _resize(_to_host(correlation), lags.shape[1])
    true = lags @ stamp @ lags.T
    white = lags[:, lags.shape[1] // 2]
    return (true / np.outer(white, white)).astype(np.float32)


def noise_correlation(order=3, *, phase_x=None, phase_y=None, correlation=None) -> np.ndarray:
    """Autocorrelation stamp, (odd, odd) float64 with centre 1, that the resampling leaves in white noise.

    Averaged over the pairs of sub-pixel phases ``phase_x, phase_y`` (1-D, in [0, 1)); uniform phases when
    they are None. ``correlation`` is the input noise's own stamp: the result is then the autocorrelation of
    the once more resampled noise.
    """
    if phase_x is None or phase_y is None:
        nodes = (np.arange(32) + 0.5) / 32
        lags = np.stack([_autocorrelation(w) for w in lanczos_weights(nodes, order)]).mean(0)
        stamp = np.outer(lags, lags)
    else:
        rows, columns = (
            np.stack([_autocorrelation(w) for w in lanczos_weights(np.asarray(phase), order)]) for phase in (phase_y, phase_x)
        )
        stamp = rows.T @ columns / len(rows)
    if correlation is not None:
        stamp = _convolve_full(stamp, _to_host(correlation))
    return stamp / stamp[stamp.shape[0] // 2, stamp.shape[1] // 2]


def map_phases(map_x, map_y) -> tuple[np.ndarray, np.ndarray]:
    """Sub-pixel phases (x, y) at the nodes of a grid, 1-D float64 on the host: what `noise_correlation`
    averages over."""
    x, y = (_to_host(m).ravel() for m in (map_x, map_y))
    good = np.isfinite(x) & np.isfinite(y)
    return x[good] % 1.0, y[good] % 1.0


def _autocorrelation(weights):
    return np.convolve(weights, weights[::-1])


def _convolve_full(a, b):
    from scipy.signal import convolve2d

    return convolve2d(a, b)


def _resize(stamp, size):
    """Centre ``stamp`` in (size, size): zeros outside, cropped where larger."""
    out = np.zeros((size, size))
    half = min(size, stamp.shape[0]) // 2
    c, s = size // 2, stamp.shape[0] // 2
    out[c - half : c + half + 1, c - half : c + half + 1] = stamp[s - half : s + half + 1, s - half : s + half + 1]
    return out


def _to_host(array):
    return np.asarray(array.get() if hasattr(array, "get") else array, dtype=np.float64)


@device_function
def _bilinear(grid, j, i, v, u):
    top = grid[j, i] + u * (grid[j, i + 1] - grid[j, i])
    bottom = grid[j + 1, i] + u * (grid[j + 1, i + 1] - grid[j + 1, i])
    return top + v * (bottom - top)


@device_function
def _area_ratio(map_x, map_y, j, i, v, u, step):
    xu = (map_x[j, i + 1] - map_x[j, i]) * (1.0 - v) + (map_x[j + 1, i + 1] - map_x[j + 1, i]) * v
    xv = (map_x[j + 1, i] - map_x[j, i]) * (1.0 - u) + (map_x[j + 1, i + 1] - map_x[j, i + 1]) * u
    yu = (map_y[j, i + 1] - map_y[j, i]) * (1.0 - v) + (map_y[j + 1, i + 1] - map_y[j + 1, i]) * v
    yv = (map_y[j + 1, i] - map_y[j, i]) * (1.0 - u) + (map_y[j + 1, i + 1] - map_y[j, i + 1]) * u
    return abs(xu * yv - xv * yu) / (float(step) * float(step))


@device_function
def _weights_at(table, phase, taps, weights):
    """Interpolate one row of weights out of ``table`` at ``phase`` in [0, 1]: x - floor(x) may round to 1."""
    position = phase * PHASES
    row = min(int(position), PHASES - 1)
    rest = np.float32(position - row)
    for k in range(taps):
        weights[k] = table[row, k] + rest * (table[row + 1, k] - table[row, k])


@device_function
def _sample(image, mask, variance, x0, y0, wx, wy, taps, ny_in, nx_in):
    """Sum one support; returns value, variance, mask bits and whether a pixel that matters was missing."""
    value, spread = np.float32(0), np.float32(0)
    bits, missing = np.int32(0), False
    for k in range(taps):
        y = y0 + k
        for i in range(taps):
            x = x0 + i
            w = wy[k] * wx[i]
            matters = abs(w) > np.float32(MEANINGFUL_WEIGHT)
            if y < 0 or y >= ny_in or x < 0 or x >= nx_in:
                missing = missing or matters
                continue
            pixel = image[y, x]
            if pixel != pixel or (mask[y, x] & _NO_DATA) != 0:
                missing = missing or matters
                continue
            value += w * pixel
            spread += (w * w) * variance[y, x]
            if matters:
                bits |= mask[y, x]
    return value, spread, bits, missing


@hot_loop("warp")
def lanczos_warp(
    image, mask, variance, map_x, map_y, table, gain, step, order, conserve, ny_in, nx_in, nx_grid, ny, nx,
    out_image, out_mask, out_variance,
):  # fmt: skip
    """One output pixel per thread; see `warp`."""
    taps = 2 * order
    for y in prange(ny):
        wx, wy = np.empty(taps, np.float32), np.empty(taps, np.float32)
        for x in range(nx):
            j, i = y // step, x // step
            v, u = (y - j * step) / float(step), (x - i * step) / float(step)
            sx, sy = _bilinear(map_x, j, i, v, u), _bilinear(map_y, j, i, v, u)
            out_image[y, x], out_mask[y, x], out_variance[y, x] = (
                np.float32(np.nan),
                _NO_DATA,
                np.float32(np.nan),
            )
            if not (sx > -order and sx < nx_in - 1 + order and sy > -order and sy < ny_in - 1 + order):
                continue
            ix, iy = int(np.floor(sx)), int(np.floor(sy))
            fx, fy = sx - ix, sy - iy
            _weights_at(table, fx, taps, wx)
            _weights_at(table, fy, taps, wy)
            value, spread, bits, missing = _sample(
                image, mask, variance, ix - order + 1, iy - order + 1, wx, wy, taps, ny_in, nx_in
            )
            if missing:
                continue
            gx, gy = min(int(fx * GAIN_PHASES), GAIN_PHASES - 1), min(int(fy * GAIN_PHASES), GAIN_PHASES - 1)
            factor = np.float32(_bilinear(gain, gy, gx, fy * GAIN_PHASES - gy, fx * GAIN_PHASES - gx))
            area = np.float32(_area_ratio(map_x, map_y, j, i, v, u, step)) if conserve else np.float32(1)
            out_image[y, x] = value * area
            out_variance[y, x] = spread * factor * area * area
            out_mask[y, x] = bits


def warp_reference(
    image, mask, variance, map_x, map_y, step, shape, *, order=3, conserve_flux=True, noise_correlation=None
) -> tuple:
    """The definition of `warp` in plain NumPy float64, weights from the formula instead of the table."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    j, i = y // step, x // step
    v, u = (y % step) / step, (x % step) / step
    sx, sy = _bilinear.py_func(map_x, j, i, v, u), _bilinear.py_func(map_y, j, i, v, u)
    good = np.isfinite(sx) & np.isfinite(sy)
    sx, sy = np.where(good, sx, -1e6), np.where(good, sy, -1e6)
    ix, iy = np.floor(sx).astype(int), np.floor(sy).astype(int)
    wx = lanczos_weights((sx - ix).ravel(), order).reshape(*shape, -1)
    wy = lanczos_weights((sy - iy).ravel(), order).reshape(*shape, -1)
    value, spread, bits = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int32)
    missing = np.zeros(shape, bool)
    ny_in, nx_in = image.shape
    for k in range(2 * order):
        for m in range(2 * order):
            yy, xx = iy - order + 1 + k, ix - order + 1 + m
            w = wy[..., k] * wx[..., m]
            inside = (yy >= 0) & (yy < ny_in) & (xx >= 0) & (xx < nx_in)
            yy, xx = yy.clip(0, ny_in - 1), xx.clip(0, nx_in - 1)
            present = inside & np.isfinite(image[yy, xx]) & ((mask[yy, xx] & _NO_DATA) == 0)
            matters = np.abs(w) > MEANINGFUL_WEIGHT
            missing |= matters & ~present
            value += np.where(present, w * image[yy, xx], 0)
            spread += np.where(present, w * w * variance[yy, xx], 0)
            bits |= np.where(present & matters, mask[yy, xx], 0)
    area = _area_ratio.py_func(map_x, map_y, j, i, v, u, step) if conserve_flux else np.ones(shape)
    gain = variance_gain_table(order, noise_correlation)
    gx, gy = ((sx - ix) * GAIN_PHASES).astype(int), ((sy - iy) * GAIN_PHASES).astype(int)
    factor = _bilinear.py_func(gain, gy, gx, (sy - iy) * GAIN_PHASES - gy, (sx - ix) * GAIN_PHASES - gx)
    out = (
        np.where(missing, np.nan, value * area),
        np.where(missing, _NO_DATA, bits),
        np.where(missing, np.nan, spread * factor * area**2),
    )
    return tuple(a.astype(t) for a, t in zip(out, (np.float32, np.int32, np.float32), strict=True))
