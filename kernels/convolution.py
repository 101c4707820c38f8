"""Convolution with kernels that differ from tile to tile, by Fourier transforms of overlapping blocks.

A tile is a square of ``tile_pix`` pixels; out(p) = sum_q K(q) in(p - q) with the kernel of the tile that p lies in, zero
outside the image. A block is a tile with the margin that its kernels reach into, so no tile sees another's wrap-around
(overlap-save). Masks follow their own rule (`kernels.mask_spreading`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.target import array_module, chunks, for_each, scipy_module

LARGEST_TILE = 256  # pixels: large enough that margins cost little, small enough to stay in a CPU's cache
GROUP_PIX = 350_000  # of all blocks transformed at a time: for the same reason, and enough for threads to work side by side
TILES_ACROSS = 16  # a linear kernel over a sixteenth of the image follows a quadratic one to 1e-3 of its curvature


class Part(NamedTuple):
    """One plane and its kernels. ``ramp`` 0 or 1 multiplies the plane by the distance, pixels, from the tile's centre
    along y or x first: kernels that are gradients along that axis then make the kernel of each *source* pixel linear in
    its position."""

    plane: Any  # (ny, nx) float32; NaN counts as 0
    kernels: Any  # (tiles_y, tiles_x, k, k), k odd
    ramp: int | None = None


def choose_tile(shape) -> int:
    """Return the side of the tiles in pixels for an image of ``shape``: a sixteenth of it, 32 to 256."""
    return int(np.clip(-(-max(shape) // TILES_ACROSS // 32) * 32, 32, LARGEST_TILE))


def convolve_plane(plane, kernels, tile_pix, *, missing=None):
    """Convolve one (ny, nx) plane, NaN counting as 0, with one kernel per tile (tiles_y, tiles_x, k, k); return float32."""
    return convolve_parts([Part(plane, kernels)], tile_pix, missing=missing)


def convolve_parts(parts: list[Part], tile_pix: int, *, missing=None):
    """Return the float32 (ny, nx) sum of all parts' convolutions, with one inverse transform for all of them.

    The result is NaN where the plane ``missing`` (ny, nx) is. Parts of one plane should follow each other: they share its
    first transform. Transforms are float32: the error is about 1e-7 of the root mean square of the block, times the
    square root of the number of its pixels. The order of all sums is fixed.
    """
    xp = array_module(parts[0].plane)
    shape = parts[0].plane.shape
    for part in parts:
        check_tiles(shape, part.kernels, tile_pix)
    fft = scipy_module(xp, "fft")
    reach = max(part.kernels.shape[-1] for part in parts) // 2
    size = fft.next_fast_len(tile_pix + 2 * reach, True)
    rows, columns = tile_counts(shape, tile_pix)
    ramp = (xp.arange(size) - reach - (tile_pix - 1) / 2).astype(xp.float32)
    out = xp.empty(shape, xp.float32)

    def convolve_group(place: tuple[int, slice]) -> None:
        row, group = place
        total = plane = None
        for part in parts:
            if part.plane is not plane:
                plane = part.plane
                blocks = _blocks(plane, row, group, tile_pix, reach, size)
                along_x = fft.rfft(blocks, axis=2)
            ramped = fft.rfft(blocks * ramp, axis=2) if part.ramp == 1 else along_x * ramp[:, None] if part.ramp == 0 else along_x
            product = fft.fft(ramped, axis=1)
            product *= _transfer(part.kernels[row, group], reach, size, fft)
            total = product if total is None else _add(total, product)
        inside = slice(2 * reach, 2 * reach + tile_pix)
        tiles = fft.irfft(fft.ifft(total, axis=1, overwrite_x=True)[:, inside], size, axis=2)[:, :, inside]
        box = slice(row * tile_pix, (row + 1) * tile_pix), slice(group.start * tile_pix, group.stop * tile_pix)
        height, width = out[box].shape
        out[box] = tiles.transpose(1, 0, 2).reshape(tile_pix, -1)[:height, :width]
        if missing is not None:
            xp.copyto(out[box], xp.float32(xp.nan), where=xp.isnan(missing[box]))

    groups = chunks(columns, max(1, GROUP_PIX // size**2), xp)
    for_each(convolve_group, [(row, group) for row in range(rows) for group in groups], xp)
    return out


def _add(total, product):
    total += product
    return total


def _blocks(plane, row, group, tile_pix, reach, size):
    """(tiles, size, size) float32 copies, one for each tile of ``row`` in ``group`` (slice), beginning ``reach`` above
    and left of it; zero outside the plane."""
    xp = array_module(plane)
    ny, nx = plane.shape
    count = group.stop - group.start
    y0, x0 = row * tile_pix - reach, group.start * tile_pix - reach
    band = xp.zeros((size, (count - 1) * tile_pix + size), xp.float32)
    top, bottom, left, right = max(y0, 0), min(y0 + size, ny), max(x0, 0), min(x0 + band.shape[1], nx)
    band[top - y0 : bottom - y0, left - x0 : right - x0] = plane[top:bottom, left:right]
    xp.copyto(band, xp.float32(0), where=xp.isnan(band))
    return xp.stack([band[:, i * tile_pix : i * tile_pix + size] for i in range(count)])


def _transfer(kernels, reach, size, fft):
    """Transforms (tiles, size, size // 2 + 1) complex64 of kernels whose centre lies at pixel (reach, reach)."""
    xp = array_module(kernels)
    k = kernels.shape[-1]
    padded = xp.zeros((len(kernels), 2 * reach + 1, 2 * reach + 1), xp.float32)
    low = reach - k // 2
    padded[:, low : low + k, low : low + k] = kernels
    return fft.fft(fft.rfft(padded, size, axis=2), size, axis=1)


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
    """Pixel coordinates ``x, y`` of the tile centres, each (tiles_y, tiles_x) float64; those of border tiles that lie
    outside the image are moved onto its border."""
    rows, columns = tile_counts(shape, tile_pix)
    centre = (tile_pix - 1) / 2
    y, x = xp.meshgrid(xp.arange(rows) * tile_pix + centre, xp.arange(columns) * tile_pix + centre, indexing="ij")
    return xp.minimum(x, shape[1] - 1.0), xp.minimum(y, shape[0] - 1.0)


def linear_kernels(kernel_at, shape, tile_pix, *, xp=np) -> tuple:
    """Return kernels at the tiles' centres and, unless they are the same everywhere, their gradients along y and x, per pixel.

    ``kernel_at(x, y)`` gives (n, ...) kernels at n positions, one a tile in raster order; each array returned is (tiles_y,
    tiles_x, ...). Gradients are differences across the tile, within the image; for tiles whose centre lies outside the
    image the kernel is extrapolated to it.
    """
    rows, columns = tile_counts(shape, tile_pix)
    x, y = (c.ravel() for c in tile_centres(shape, tile_pix, xp=xp))
    value, half = kernel_at(x, y), tile_pix / 2
    wide = (slice(None),) + (None,) * (value.ndim - 1)
    ends_y = xp.maximum(y - half, 0.0), xp.minimum(y + half, shape[0] - 1.0)
    ends_x = xp.maximum(x - half, 0.0), xp.minimum(x + half, shape[1] - 1.0)
    along_y = (kernel_at(x, ends_y[1]) - kernel_at(x, ends_y[0])) / xp.maximum(ends_y[1] - ends_y[0], 1.0)[wide]
    along_x = (kernel_at(ends_x[1], y) - kernel_at(ends_x[0], y)) / xp.maximum(ends_x[1] - ends_x[0], 1.0)[wide]
    centre = (tile_pix - 1) / 2
    beyond_y = (xp.arange(rows)[:, None] * tile_pix + centre - y.reshape(rows, columns)).ravel()
    beyond_x = (xp.arange(columns) * tile_pix + centre - x.reshape(rows, columns)).ravel()
    value = value + beyond_y[wide] * along_y + beyond_x[wide] * along_x
    varies = bool((along_y != 0).any()) or bool((along_x != 0).any())
    return tuple(k.reshape(rows, columns, *k.shape[1:]) for k in ((value, along_y, along_x) if varies else (value,)))


def linear_parts(plane, kernels: tuple) -> list[Part]:
    """Return what `convolve_parts` needs to convolve ``plane`` with what `linear_kernels` returned."""
    return [Part(plane, k, ramp) for k, ramp in zip(kernels, (None, 0, 1), strict=False)]


def convolve_parts_reference(parts: list[Part], tile_pix: int) -> np.ndarray:
    """The definition of `convolve_parts`: one pixel after the other, float64."""
    out = np.zeros(parts[0].plane.shape)
    for plane, kernels, ramp in parts:
        half = kernels.shape[-1] // 2
        padded = np.pad(plane.astype(np.float64), half)
        place = np.mgrid[-half : plane.shape[0] + half, -half : plane.shape[1] + half].astype(float)
        for y, x in np.ndindex(*plane.shape):
            tile = y // tile_pix, x // tile_pix
            window = np.s_[y : y + 2 * half + 1, x : x + 2 * half + 1]
            weight = 1.0 if ramp is None else place[ramp][window] - tile[ramp] * tile_pix - (tile_pix - 1) / 2
            out[y, x] += np.sum(weight * padded[window] * kernels[tile][::-1, ::-1])
    return out
