"""What the mask says around a source: one boolean per plane, for a box and for its central 3 x 3 pixels."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.stamp_fit import pixel_of
from nightstream.kernels.target import array_module

FLAGGED_PLANES = {
    "bad": MaskPlane.BAD,
    "cr": MaskPlane.CR,
    "edge": MaskPlane.EDGE,
    "nodata": MaskPlane.NO_DATA,
    "interpolated": MaskPlane.INTRP,
    "saturated": MaskPlane.SAT,
    "suspect": MaskPlane.SUSPECT,
    "saturated_template": MaskPlane.SAT_TEMPLATE,
    "high_variance": MaskPlane.HIGH_VARIANCE,
    "streak": MaskPlane.STREAK,
    "injected": MaskPlane.INJECTED,
}


def pixel_flags(mask, x, y, *, half_size: int) -> dict:
    """Return (n,) bool columns for the sources at ``x, y`` (pixels) on ``mask`` (ny, nx) int32.

    ``<plane>``: any pixel of the (2 half_size + 1)^2 box around the nearest pixel has it; ``<plane>_center``:
    any of the central 3 x 3 has it; for the names of `FLAGGED_PLANES`. ``edge`` is also set where the box
    reaches off the image. ``offimage``: the nearest pixel is not on the image, or the position is not finite;
    then no plane is set.
    """
    xp = array_module(mask)
    column, row = pixel_of(*(xp.asarray(v, dtype=np.float64) for v in (x, y)))
    ny, nx = mask.shape
    offset = xp.arange(-half_size, half_size + 1)
    yy = row[:, None, None] + offset[None, :, None]
    xx = column[:, None, None] + offset[None, None, :]
    inside = (yy >= 0) & (yy < ny) & (xx >= 0) & (xx < nx)
    offimage = ~((row >= 0) & (row < ny) & (column >= 0) & (column < nx))
    box = xp.where(inside & ~offimage[:, None, None], mask[xp.clip(yy, 0, ny - 1), xp.clip(xx, 0, nx - 1)], 0)
    near = (xp.abs(offset)[:, None] <= 1) & (xp.abs(offset)[None, :] <= 1)
    flags = {"offimage": offimage}
    for name, plane in FLAGGED_PLANES.items():
        hit = (box & int(plane)) != 0
        flags[name] = hit.any(axis=(1, 2))
        flags[f"{name}_center"] = (hit & near).any(axis=(1, 2))
    flags["edge"] |= ~inside.all(axis=(1, 2)) & ~offimage
    return flags
