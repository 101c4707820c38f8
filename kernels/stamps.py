"""Square stamps cut out of an image, of any sizes, also over its border: one flat array a plane.

Owns the gathering of pixels. What is cut, and around what, is decided in `nightstream.engine.cutouts`.
"""

from __future__ import annotations

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, hot_loop

THREADS = 128  # of one block, which copies one stamp


def stamp_starts(size):
    """Return (n + 1,) int64: where each stamp of ``size`` (n,) pixels a side begins in a flat array, and the end."""
    xp = array_module(size)
    area = xp.asarray(size).astype(np.int64) ** 2
    return xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(area)])


@hot_loop("stamps")
def copy_stamps(image, mask, variance, x0, y0, size, start, scale, no_data, ny, nx, n, stamp_image, stamp_mask, stamp_variance):
    """Copy the pixels of stamp k, row by row, from ``start[k]`` on: scaled; NaN and ``no_data`` off the image."""
    for k in numba.prange(n):
        for y in range(size[k]):
            for x in range(size[k]):
                to = start[k] + np.int64(y) * size[k] + x
                yy, xx = y0[k] + y, x0[k] + x
                if yy < 0 or yy >= ny or xx < 0 or xx >= nx:
                    stamp_image[to], stamp_mask[to], stamp_variance[to] = np.float32(np.nan), no_data, np.float32(np.nan)
                else:
                    stamp_image[to] = image[yy, xx] * scale
                    stamp_mask[to] = mask[yy, xx]
                    stamp_variance[to] = variance[yy, xx] * (scale * scale)


def copy_stamps_reference(image, mask, variance, x0, y0, size, scale=1.0):
    """Define `copy_stamps`: plain NumPy, one stamp after the other; returns the three flat arrays."""
    scale = np.float32(scale)
    planes = (image * scale, np.nan), (mask, np.int32(MaskPlane.NO_DATA)), (variance * (scale * scale), np.nan)
    flat = [[np.zeros(0, plane.dtype)] for plane, _ in planes]
    for x, y, side in zip(x0, y0, size, strict=True):
        yy, xx = np.meshgrid(y + np.arange(side), x + np.arange(side), indexing="ij")
        inside = (yy >= 0) & (yy < image.shape[0]) & (xx >= 0) & (xx < image.shape[1])
        for stamps, (plane, fill) in zip(flat, planes, strict=True):
            stamp = np.full((side, side), fill, plane.dtype)
            stamp[inside] = plane[yy[inside], xx[inside]]
            stamps.append(stamp.ravel())
    return tuple(np.concatenate(stamps) for stamps in flat)


def gather_stamps(image, mask, variance, x0, y0, size, *, scale: float = 1.0):
    """Return ``(image, mask, variance)`` of all stamps, each plane flat: stamp k is [start_k, start_k + size_k^2).

    ``image`` float32, ``mask`` int32, ``variance`` float32 are (ny, nx); ``x0, y0`` (n,) int32 the first pixel
    of each stamp, which may lie off the image; ``size`` (n,) int32 its side in pixels. Images are multiplied by
    ``scale``, variances by its square, in float32. Pixels off the image are NaN with NO_DATA and nothing else;
    all others are copied as they are, NaN too. The starts are those of `stamp_starts`. Raises InputError for a
    side below 1.
    """
    xp = array_module(image)
    planes = [xp.ascontiguousarray(a, dtype=t) for a, t in ((image, np.float32), (mask, np.int32), (variance, np.float32))]
    boxes = [xp.ascontiguousarray(a, dtype=np.int32) for a in (x0, y0, size)]
    n = len(boxes[2])
    if n and int(boxes[2].min()) < 1:
        raise InputError(f"stamps must be 1 pixel wide at least, got {int(boxes[2].min())}")
    start = stamp_starts(boxes[2])
    total = int(start[n])
    out = tuple(xp.empty(total, dtype) for dtype in (np.float32, np.int32, np.float32))
    scalars = np.float32(scale), np.int32(MaskPlane.NO_DATA), *(np.int32(v) for v in (*image.shape, n))
    copy_stamps(Launch((n,), (THREADS,)), *planes, *boxes, start, *scalars, *out)
    return out
