"""How far a bad pixel reaches in a convolved image: mask planes spread over the taps of the kernel that matter."""

from __future__ import annotations

import numpy as np
from numba import prange

from nightstream.kernels.convolution import check_tiles
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

SIGNIFICANT_TAP = 1e-3  # of the largest |tap| of a kernel: below it a flagged or missing pixel does no harm
ALL_PLANES = ~MaskPlane(0)
_NO_DATA = np.int32(MaskPlane.NO_DATA)
_EDGE = np.int32(MaskPlane.EDGE)


def spread_mask(mask, kernels, tile_pix, *, planes=ALL_PLANES):
    """Return the mask, (ny, nx) int32, of an image convolved with ``kernels`` (tiles_y, tiles_x, k, k).

    Of ``planes`` each pixel gets those that any pixel under a significant tap (|tap| > 1e-3 of the kernel's largest)
    has; next to NO_DATA pixels and outside the image that is EDGE. Other planes, and NO_DATA, stay where they are.
    """
    xp = array_module(mask)
    check_tiles(mask.shape, kernels, tile_pix)
    border = mask | xp.where((mask & _NO_DATA) != 0, _EDGE, np.int32(0))
    spreading = border & np.int32(int(planes) & 0x7FFFFFFF & ~int(_NO_DATA) | int(_EDGE))
    out = xp.empty(mask.shape, xp.int32)
    sizes = (np.int32(n) for n in (*mask.shape, kernels.shape[1], kernels.shape[3], tile_pix))
    spread_tiles(Launch.over(mask.shape), spreading.astype(xp.int32), significant_taps(kernels), *sizes, out)
    return out | mask


def missing_pixels(image, mask):
    """Return where nothing was measured: NaN or NO_DATA."""
    return array_module(image).isnan(image) | ((mask & _NO_DATA) != 0)


def significant_taps(kernels):
    """(tiles_y, tiles_x, k, k) uint8: 1 where |tap| > 1e-3 of the largest of its kernel."""
    xp = array_module(kernels)
    size = xp.abs(kernels)
    return (size > SIGNIFICANT_TAP * size.max(axis=(2, 3), keepdims=True)).astype(xp.uint8)


@device_function
def _gather(plane, y0, x0, block, outside):
    """Copy the block of ``plane`` that starts at (y0, x0) into ``block``; ``outside`` where there is no
    plane."""
    ny, nx = plane.shape
    for j in range(block.shape[0]):
        for i in range(block.shape[1]):
            y, x = y0 + j, x0 + i
            block[j, i] = plane[y, x] if 0 <= y < ny and 0 <= x < nx else outside


@hot_loop("mask_spreading")
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


def spread_mask_reference(mask, kernels, tile_pix, *, planes=ALL_PLANES) -> np.ndarray:
    """The definition of `spread_mask`, one pixel after the other."""
    missing = (mask & _NO_DATA) != 0
    border = np.where(missing, mask | _EDGE, mask) & (int(planes) & ~int(_NO_DATA) | int(_EDGE))
    half = kernels.shape[3] // 2
    padded = np.pad(border, half, constant_values=int(_EDGE))
    taps = np.asarray(significant_taps(kernels))[:, :, ::-1, ::-1]
    out = mask.copy()
    for y, x in np.ndindex(*mask.shape):
        window = padded[y : y + 2 * half + 1, x : x + 2 * half + 1]
        out[y, x] |= np.bitwise_or.reduce(window[taps[y // tile_pix, x // tile_pix] != 0], initial=0)
    return out
