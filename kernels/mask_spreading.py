"""How far a bad pixel reaches in a convolved image: mask planes spread over the taps of the kernel that matter."""

from __future__ import annotations

import numpy as np
from numba import prange

from nightstream.kernels.convolution import check_tiles
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

SIGNIFICANT_TAP = 1000  # a tap below the largest one divided by this carries no flag on
LEAST_TAP = 1e-5  # of the largest: below, it carries no saturation on either, however many pixels there are
WHOLE_KERNEL = 1 << 30  # unit of taps as integers: the sum of all |taps|
SATURATED_SHARE = np.int32(3e-5 * WHOLE_KERNEL)  # of a kernel, over saturated pixels: they lost 1e3 to 1e4 times the noise
ALL_PLANES = ~MaskPlane(0)
SATURATED = MaskPlane.SAT | MaskPlane.SAT_TEMPLATE
_NO_DATA = np.int32(MaskPlane.NO_DATA)
_EDGE = np.int32(MaskPlane.EDGE)
_SAT = np.int32(MaskPlane.SAT)
_SAT_TEMPLATE = np.int32(MaskPlane.SAT_TEMPLATE)


def spread_mask(mask, kernels, tile_pix, *, planes=ALL_PLANES, lost=SATURATED):
    """Return the mask, (ny, nx) int32, of an image convolved with ``kernels`` (tiles_y, tiles_x, k, k).

    Of ``planes`` each pixel gets those that any pixel under a significant tap (1e-3 of the kernel's largest or more) has;
    next to NO_DATA pixels and outside the image that is EDGE. SAT and SAT_TEMPLATE go further, for what was lost there is
    no noise: to where the pixels that have one of them lie under taps of more than 3e-5 of the kernel, taken together,
    each of them 1e-5 of the largest or more. That is for those of ``lost``; one that is spread already goes as far as others.
    Other planes, and NO_DATA, stay where they are.
    """
    check_tiles(mask.shape, kernels, tile_pix)
    xp = array_module(mask)
    mask = xp.ascontiguousarray(mask, dtype=np.int32)
    out = xp.empty(mask.shape, xp.int32)
    taps, least = integer_taps(kernels)
    spreading = np.int32(int(planes) & 0x7FFFFFFF & ~int(_NO_DATA) | int(_EDGE))
    sizes = (np.int32(n) for n in (*mask.shape, taps.shape[1], taps.shape[3], tile_pix))
    spread_tiles(Launch.over(mask.shape), mask, taps, least, spreading, np.int32(lost), *sizes, out)
    return out


def missing_pixels(image, mask):
    """Return where nothing was measured: NaN or NO_DATA."""
    return array_module(image).isnan(image) | ((mask & _NO_DATA) != 0)


def integer_taps(kernels):
    """Return |taps| (tiles_y, tiles_x, k, k) int32 in units of 2^-30 of the kernel's sum of |taps|, whose sums are the
    same in any order, 0 for the least ones, and (tiles_y, tiles_x) the smallest significant one."""
    xp = array_module(kernels)
    size = xp.abs(kernels.astype(xp.float64))
    size = xp.where(size < LEAST_TAP * size.max(axis=(2, 3), keepdims=True), 0.0, size)
    taps = xp.rint(size * (WHOLE_KERNEL / xp.maximum(size.sum(axis=(2, 3), keepdims=True), 1e-300))).astype(xp.int32)
    return taps, taps.max(axis=(2, 3)) // SIGNIFICANT_TAP + 1


@device_function
def _bits_of_row(row):
    """OR of all pixels of a row, which is fast."""
    bits = np.int32(0)
    for x in range(len(row)):
        bits |= row[x]
    return bits


@device_function
def _spreads(mask, y, x, planes):
    """What a pixel passes on; outside the image lies EDGE."""
    if y < 0 or y >= mask.shape[0] or x < 0 or x >= mask.shape[1]:
        return _EDGE
    bits = mask[y, x]
    return (bits | _EDGE if bits & _NO_DATA else bits) & planes


@device_function
def _flag_run(bits, y, first, last, taps, least, lost, out, shares):
    """Pass ``bits`` of the pixels ``first`` to ``last`` (exclusive) of row ``y`` on to the tile ``out``; all counted from its
    corner. Their taps are added to ``shares`` (2, height, width) of SAT and of SAT_TEMPLATE."""
    k, (height, width) = taps.shape[0], out.shape
    for j in range(k):
        row = y + j - k // 2
        if row < 0 or row >= height:
            continue
        for i in range(k):
            tap = taps[j, i]
            start, stop = max(first + i - k // 2, 0), min(last + i - k // 2, width)
            if tap >= least:
                for x in range(start, stop):
                    out[row, x] |= bits
            if bits & lost & _SAT:
                for x in range(start, stop):
                    shares[0, row, x] += tap
            if bits & lost & _SAT_TEMPLATE:
                for x in range(start, stop):
                    shares[1, row, x] += tap


@device_function
def _flag_saturated(shares, out):
    for y in range(shares.shape[1]):
        for x in range(shares.shape[2]):
            if shares[0, y, x] > SATURATED_SHARE:
                out[y, x] |= _SAT
            if shares[1, y, x] > SATURATED_SHARE:
                out[y, x] |= _SAT_TEMPLATE


@device_function
def _spread_tile(mask, y0, x0, taps, least, planes, lost, out):
    """Flag the tile ``out`` whose corner is pixel (y0, x0)."""
    (ny, nx), (height, width), half = mask.shape, out.shape, taps.shape[0] // 2
    shares = np.zeros((2, 0, 0), np.int32)
    for y in range(y0 - half, y0 + height + half):
        near = mask[min(max(y, 0), ny - 1), max(x0 - half, 0) : min(x0 + width + half, nx)]
        present = _bits_of_row(near) & (planes | _NO_DATA)
        if present == 0 and 0 <= y < ny and half <= x0 and x0 + width + half <= nx:
            continue
        if shares.size == 0 and present & lost:
            shares = np.zeros((2, height, width), np.int32)
        x = x0 - half
        while x < x0 + width + half:
            start, bits = x, _spreads(mask, y, x, planes)
            while x < x0 + width + half and _spreads(mask, y, x, planes) == bits:
                x += 1
            if bits != 0:
                _flag_run(bits, y - y0, start - x0, x - x0, taps, least, lost, out, shares)
    _flag_saturated(shares, out)


@hot_loop("mask_spreading")
def spread_tiles(mask, taps, least, planes, lost, ny, nx, tiles_x, k, tile_pix, out):
    """OR the planes of every pixel within the significant taps, run by run of pixels that are alike."""
    for tile in prange(((ny + tile_pix - 1) // tile_pix) * tiles_x):
        row, column = tile // tiles_x, tile % tiles_x
        y0, x0 = row * tile_pix, column * tile_pix
        y1, x1 = min(y0 + tile_pix, ny), min(x0 + tile_pix, nx)
        out[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
        _spread_tile(mask, y0, x0, taps[row, column], least[row, column], planes, lost, out[y0:y1, x0:x1])


def spread_mask_reference(mask, kernels, tile_pix, *, planes=ALL_PLANES, lost=SATURATED) -> np.ndarray:
    """The definition of `spread_mask`, one pixel after the other."""
    missing = (mask & _NO_DATA) != 0
    spreading = int(planes) & ~int(_NO_DATA) | int(_EDGE)
    border = np.where(missing, mask | _EDGE, mask) & spreading
    half = kernels.shape[3] // 2
    padded = np.pad(border, half, constant_values=int(_EDGE))
    taps, least = integer_taps(kernels)
    taps = taps[:, :, ::-1, ::-1]
    out = mask.copy()
    for y, x in np.ndindex(*mask.shape):
        window, tile = padded[y : y + 2 * half + 1, x : x + 2 * half + 1], (y // tile_pix, x // tile_pix)
        out[y, x] |= np.bitwise_or.reduce(window[taps[tile] >= least[tile]], initial=0)
        for plane in (_SAT & int(lost), _SAT_TEMPLATE & int(lost)):
            if taps[tile][(window & plane) != 0].sum() > SATURATED_SHARE:
                out[y, x] |= plane
    return out
