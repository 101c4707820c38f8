"""Convolution with a kernel that differs from tile to tile, of image, mask and variance together.

A tile is a square of ``tile_pix`` output pixels; within it the kernel is constant. out(p) = sum_q K(q) in(p
- q).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

SIGNIFICANT_TAP = 1e-3  # of the largest |tap| of a kernel: below it a flagged or missing pixel does no harm
ALL_PLANES = ~MaskPlane(0)
_NO_DATA = np.int32(MaskPlane.NO_DATA)
_EDGE = np.int32(MaskPlane.EDGE)


def convolve_tiles(image, mask, variance, kernels, tile_pix, *, planes=ALL_PLANES, variance_kernels=None) -> tuple:
    """Convolve three (ny, nx) planes with ``kernels`` (tiles_y, tiles_x, k, k), k odd; return image, mask,
    variance.

    Image float32, multiplied and summed in float32 in a fixed order (row by row of the kernel, so every
    target gives the same bits); variance with the squared kernel, or with ``variance_kernels`` (tiles_y,
    tiles_x, m, m) when given. Pixels that are NaN or NO_DATA, and those outside the image, count as 0; such
    a pixel stays NaN with NO_DATA, and pixels reached from one through a significant tap (|tap| > 1e-3 of
    the largest) get EDGE. The other mask planes among ``planes`` spread over significant taps; planes not
    among them stay where they are.
    """
    xp = array_module(image)
    out_image, out_mask = convolve_masked(image, mask, kernels, tile_pix, planes=planes)
    squares = xp.asarray(kernels, dtype=xp.float32) ** 2 if variance_kernels is None else variance_kernels
    missing = xp.isnan(out_image)
    out_variance = convolve_plane(xp.where(missing, xp.float32(0), variance), squares, tile_pix)
    return out_image, out_mask, xp.where(missing, xp.float32(xp.nan), out_variance)


def convolve_masked(image, mask, kernels, tile_pix, *, planes=ALL_PLANES) -> tuple:
    """Convolve image and mask as `convolve_tiles` does, without a variance plane; return both."""
    xp = array_module(image)
    kernels = xp.ascontiguousarray(kernels, dtype=xp.float32)
    check_tiles(image.shape, kernels, tile_pix)
    mask = xp.ascontiguousarray(mask)
    missing = xp.isnan(image) | ((mask & _NO_DATA) != 0)
    out_image = convolve_plane(xp.where(missing, xp.float32(0), image), kernels, tile_pix)
    out_mask = _spread_planes(xp.where(missing, mask | _NO_DATA, mask), kernels, tile_pix, planes)
    return xp.where(missing, xp.float32(xp.nan), out_image), out_mask


def convolve_plane(plane, kernels, tile_pix):
    """Convolve one finite float32 (ny, nx) plane, zero outside, with one kernel per tile; float32, fixed
    order."""
    xp = array_module(plane)
    kernels = xp.ascontiguousarray(kernels, dtype=xp.float32)
    check_tiles(plane.shape, kernels, tile_pix)
    out = xp.empty(plane.shape, xp.float32)
    convolve_float_tiles(
        Launch.over(plane.shape),
        xp.ascontiguousarray(plane, xp.float32),
        kernels,
        *_sizes(plane.shape, kernels, tile_pix),
        out,
    )
    return out


def check_tiles(shape, kernels, tile_pix) -> None:
    """Raise ValueError unless ``kernels`` is (tiles_y, tiles_x, k, k), k odd, with as many tiles as
    ``shape`` has."""
    wanted = tile_counts(shape, tile_pix)
    if kernels.ndim != 4 or kernels.shape[:2] != wanted or kernels.shape[2] != kernels.shape[3] or kernels.shape[3] % 2 == 0:
        raise ValueError(f"kernels of shape {kernels.shape}, wanted {wanted} + (k, k) with k odd for an image of {shape}")


def tile_counts(shape, tile_pix) -> tuple[int, int]:
    """(tiles_y, tiles_x) that cover ``shape``."""
    return tuple(-(-n // tile_pix) for n in shape)


def tile_centres(shape, tile_pix, *, xp=np) -> tuple:
    """Pixel coordinates ``x, y`` of the tile centres, each (tiles_y, tiles_x) float64; border tiles as if
    complete."""
    rows, columns = tile_counts(shape, tile_pix)
    centre = (tile_pix - 1) / 2
    y, x = xp.meshgrid(xp.arange(rows) * tile_pix + centre, xp.arange(columns) * tile_pix + centre, indexing="ij")
    return xp.minimum(x, shape[1] - 1.0), xp.minimum(y, shape[0] - 1.0)


def _spread_planes(mask, kernels, tile_pix, planes):
    xp = array_module(mask)
    border = mask | xp.where((mask & _NO_DATA) != 0, _EDGE, np.int32(0))
    spreading = border & np.int32(int(planes) & 0x7FFFFFFF & ~int(_NO_DATA) | int(_EDGE))
    out = xp.empty(mask.shape, xp.int32)
    spread_tiles(
        Launch.over(mask.shape), spreading.astype(xp.int32), significant_taps(kernels),
        *_sizes(mask.shape, kernels, tile_pix), out,
    )  # fmt: skip
    return out | mask


def significant_taps(kernels):
    """(tiles_y, tiles_x, k, k) uint8: 1 where |tap| > 1e-3 of the largest of its kernel."""
    xp = array_module(kernels)
    size = xp.abs(kernels)
    return (size > SIGNIFICANT_TAP * size.max(axis=(2, 3), keepdims=True)).astype(xp.uint8)


def _sizes(shape, kernels, tile_pix):
    return tuple(np.int32(n) for n in (*shape, kernels.shape[1], kernels.shape[3], tile_pix))


@device_function
def _add_rows(row, source, taps, n):
    """row[x] += sum_i taps[i] source[x + k - 1 - i], taps in increasing order, four at a time to stay in
    registers."""
    k = taps.shape[0]
    i = 0
    while i + 4 <= k:
        a, b, c, d = taps[i], taps[i + 1], taps[i + 2], taps[i + 3]
        s0, s1, s2, s3 = source[k - 1 - i :], source[k - 2 - i :], source[k - 3 - i :], source[k - 4 - i :]
        for x in range(n):
            row[x] = (((row[x] + a * s0[x]) + b * s1[x]) + c * s2[x]) + d * s3[x]
        i += 4
    while i < k:
        a, s0 = taps[i], source[k - 1 - i :]
        for x in range(n):
            row[x] += a * s0[x]
        i += 1


@device_function
def _gather(plane, y0, x0, block, outside):
    """Copy the block of ``plane`` that starts at (y0, x0) into ``block``; ``outside`` where there is no
    plane."""
    ny, nx = plane.shape
    for j in range(block.shape[0]):
        for i in range(block.shape[1]):
            y, x = y0 + j, x0 + i
            block[j, i] = plane[y, x] if 0 <= y < ny and 0 <= x < nx else outside


@hot_loop("convolution")
def convolve_float_tiles(plane, kernels, ny, nx, tiles_x, k, tile_pix, out):
    """Each tile: gather it with its halo, then add row after row of the kernel."""
    half = k // 2
    tiles = ((ny + tile_pix - 1) // tile_pix) * tiles_x
    for tile in prange(tiles):
        ty, tx = tile // tiles_x, tile % tiles_x
        height, width = min(tile_pix, ny - ty * tile_pix), min(tile_pix, nx - tx * tile_pix)
        block = np.empty((height + k - 1, width + k - 1), np.float32)
        _gather(plane, ty * tile_pix - half, tx * tile_pix - half, block, np.float32(0))
        row = np.empty(width, np.float32)
        for y in range(height):
            row[:] = 0
            for j in range(k):
                _add_rows(row, block[y + k - 1 - j], kernels[ty, tx, j], width)
            out[ty * tile_pix + y, tx * tile_pix : tx * tile_pix + width] = row


@hot_loop("convolution")
def spread_tiles(mask, taps, ny, nx, tiles_x, k, tile_pix, out):
    """OR the planes of every pixel within the significant taps; outside the image lies EDGE."""
    half = k // 2
    tiles = ((ny + tile_pix - 1) // tile_pix) * tiles_x
    for tile in prange(tiles):
        ty, tx = tile // tiles_x, tile % tiles_x
        height, width = min(tile_pix, ny - ty * tile_pix), min(tile_pix, nx - tx * tile_pix)
        block = np.empty((height + k - 1, width + k - 1), np.int32)
        _gather(mask, ty * tile_pix - half, tx * tile_pix - half, block, _EDGE)
        result = np.zeros((height, width), np.int32)
        if block.any():
            for y in range(height):
                _or_rows(result[y], block, taps[ty, tx], y, width)
        out[ty * tile_pix : ty * tile_pix + height, tx * tile_pix : tx * tile_pix + width] = result


@device_function
def _or_rows(row, block, taps, y, n):
    k = taps.shape[0]
    for j in range(k):
        source = block[y + k - 1 - j]
        if not source.any():
            continue
        for i in range(k):
            if taps[j, i] != 0:
                shifted = source[k - 1 - i :]
                for x in range(n):
                    row[x] |= shifted[x]


def convolve_tiles_reference(image, mask, variance, kernels, tile_pix, *, planes=ALL_PLANES, variance_kernels=None) -> tuple:
    """The definition of `convolve_tiles`: one pixel after the other, float64."""
    ny, nx = image.shape
    squares = kernels.astype(np.float64) ** 2 if variance_kernels is None else variance_kernels
    missing = np.isnan(image) | ((mask & _NO_DATA) != 0)
    border = np.where(missing, mask | _EDGE, mask) & (int(planes) & ~int(_NO_DATA) | int(_EDGE))
    out_image, out_variance = (
        _correlate_pixels(np.where(missing, 0, plane), taps, tile_pix) for plane, taps in ((image, kernels), (variance, squares))
    )
    half = kernels.shape[3] // 2
    padded = np.pad(border, half, constant_values=int(_EDGE))
    taps = np.asarray(significant_taps(kernels))[:, :, ::-1, ::-1]
    out_mask = np.where(missing, mask | _NO_DATA, mask)
    for y, x in np.ndindex(ny, nx):
        window = padded[y : y + 2 * half + 1, x : x + 2 * half + 1]
        out_mask[y, x] |= np.bitwise_or.reduce(window[taps[y // tile_pix, x // tile_pix] != 0], initial=0)
    out_image[missing], out_variance[missing] = np.nan, np.nan
    return out_image.astype(np.float32), out_mask.astype(np.int32), out_variance.astype(np.float32)


def _correlate_pixels(plane, kernels, tile_pix):
    half = kernels.shape[3] // 2
    padded = np.pad(plane.astype(np.float64), half)
    out = np.empty(plane.shape)
    for y, x in np.ndindex(*plane.shape):
        window = padded[y : y + 2 * half + 1, x : x + 2 * half + 1]
        out[y, x] = np.sum(window * kernels[y // tile_pix, x // tile_pix, ::-1, ::-1])
    return out
