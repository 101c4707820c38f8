"""How far a bad pixel reaches in a convolved image: mask planes spread over the taps of the kernel that matter."""

from __future__ import annotations

import numpy as np
from numba import prange

from nightstream.kernels.convolution import check_tiles
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

SIGNIFICANT_TAP = 1e-3  # of the largest |tap| of a kernel: below it a flagged or missing pixel does no harm
SATURATED_TAP = 1e-5  # the same of a saturated one, whose light is 1e3 times the noise or more, and partly lost
ALL_PLANES = ~MaskPlane(0)
SATURATED = MaskPlane.SAT | MaskPlane.SAT_TEMPLATE
_NO_DATA = np.int32(MaskPlane.NO_DATA)
_EDGE = np.int32(MaskPlane.EDGE)


def spread_mask(mask, kernels, tile_pix, *, planes=ALL_PLANES):
    """Return the mask, (ny, nx) int32, of an image convolved with ``kernels`` (tiles_y, tiles_x, k, k).

    Of ``planes`` each pixel gets those that any pixel under a significant tap (|tap| > 1e-3 of the kernel's largest,
    1e-5 for SAT and SAT_TEMPLATE) has; next to NO_DATA pixels and outside the image that is EDGE. Other planes, and
    NO_DATA, stay where they are.
    """
    check_tiles(mask.shape, kernels, tile_pix)
    mask = array_module(mask).ascontiguousarray(mask, dtype=np.int32)
    out = _spread(mask, significant_taps(kernels), tile_pix, planes)
    far = np.int32(int(planes) & int(SATURATED))
    if bool((mask & far).any()):
        out |= _spread(mask & far, significant_taps(kernels, SATURATED_TAP), tile_pix, far) & far
    return out


def _spread(mask, taps, tile_pix, planes):
    xp = array_module(mask)
    out = xp.empty(mask.shape, xp.int32)
    spreading = np.int32(int(planes) & 0x7FFFFFFF & ~int(_NO_DATA) | int(_EDGE))
    sizes = (np.int32(n) for n in (*mask.shape, taps.shape[1], taps.shape[3], tile_pix))
    spread_tiles(Launch.over(mask.shape), mask, taps, spreading, *sizes, out)
    return out


def missing_pixels(image, mask):
    """Return where nothing was measured: NaN or NO_DATA."""
    return array_module(image).isnan(image) | ((mask & _NO_DATA) != 0)


def significant_taps(kernels, least=SIGNIFICANT_TAP):
    """(tiles_y, tiles_x, k, k) uint8: 1 where |tap| > ``least`` of the largest of its kernel."""
    xp = array_module(kernels)
    size = xp.abs(kernels)
    return (size > least * size.max(axis=(2, 3), keepdims=True)).astype(xp.uint8)


@device_function
def _is_clean(mask, y0, x0, size_y, size_x, planes):
    """Is the block within the image and without anything that spreads; rows are OR-ed as wholes, which is fast."""
    ny, nx = mask.shape
    if y0 < 0 or x0 < 0 or y0 + size_y > ny or x0 + size_x > nx:
        return False
    bits = np.int32(0)
    for y in range(y0, y0 + size_y):
        row = mask[y, x0 : x0 + size_x]
        for x in range(len(row)):
            bits |= row[x]
    return bits & (planes | _NO_DATA) == 0


@device_function
def _gather(mask, y0, x0, planes, block, first, last):
    """Copy what spreads of the block of ``mask`` that starts at (y0, x0), EDGE where there is no pixel; ``first`` and
    ``last`` get the columns between which each row has any (last < first for none)."""
    ny, nx = mask.shape
    for j in range(block.shape[0]):
        first[j], last[j] = block.shape[1], -1
        for i in range(block.shape[1]):
            y, x = y0 + j, x0 + i
            bits = mask[y, x] if 0 <= y < ny and 0 <= x < nx else _EDGE
            if bits & _NO_DATA:
                bits |= _EDGE
            block[j, i] = bits & planes
            if block[j, i] != 0:
                first[j], last[j] = min(first[j], i), i


@hot_loop("mask_spreading")
def spread_tiles(mask, taps, planes, ny, nx, tiles_x, k, tile_pix, out):
    """OR the planes of every pixel within the significant taps; outside the image lies EDGE."""
    half = k // 2
    tiles = ((ny + tile_pix - 1) // tile_pix) * tiles_x
    for tile in prange(tiles):
        y0, x0 = tile // tiles_x * tile_pix, tile % tiles_x * tile_pix
        height, width = min(tile_pix, ny - y0), min(tile_pix, nx - x0)
        for y in range(y0, y0 + height):
            out[y, x0 : x0 + width] = mask[y, x0 : x0 + width]
        if _is_clean(mask, y0 - half, x0 - half, height + k - 1, width + k - 1, planes):
            continue
        block = np.empty((height + k - 1, width + k - 1), np.int32)
        first, last = np.empty(len(block), np.int32), np.empty(len(block), np.int32)
        _gather(mask, y0 - half, x0 - half, planes, block, first, last)
        tile_taps, tile_out = taps[y0 // tile_pix, x0 // tile_pix], out[y0:, x0:]
        for source in range(len(block)):
            if last[source] >= 0:
                _or_row(block[source], first[source], last[source], source, tile_taps, height, width, tile_out)


@device_function
def _or_row(row, first, last, source, taps, height, width, out):
    """Add one row of the block to all rows of the tile that its taps reach, only where the row has bits."""
    k = taps.shape[0]
    for j in range(k):
        y = source - (k - 1) + j
        if y < 0 or y >= height:
            continue
        for i in range(k):
            if taps[j, i] != 0:
                shift = k - 1 - i
                for x in range(max(first - shift, 0), min(last - shift + 1, width)):
                    out[y, x] |= row[x + shift]


def spread_mask_reference(mask, kernels, tile_pix, *, planes=ALL_PLANES) -> np.ndarray:
    """The definition of `spread_mask`, one pixel after the other."""
    missing = (mask & _NO_DATA) != 0
    border = np.where(missing, mask | _EDGE, mask) & (int(planes) & ~int(_NO_DATA) | int(_EDGE))
    half = kernels.shape[3] // 2
    padded = np.pad(border, half, constant_values=int(_EDGE))
    near, far = (np.asarray(significant_taps(kernels, least))[:, :, ::-1, ::-1] for least in (SIGNIFICANT_TAP, SATURATED_TAP))
    out = mask.copy()
    for y, x in np.ndindex(*mask.shape):
        window, tile = padded[y : y + 2 * half + 1, x : x + 2 * half + 1], (y // tile_pix, x // tile_pix)
        out[y, x] |= np.bitwise_or.reduce(window[near[tile] != 0], initial=0)
        out[y, x] |= np.bitwise_or.reduce(window[far[tile] != 0], initial=0) & int(SATURATED)
    return out
