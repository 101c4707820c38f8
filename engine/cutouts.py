"""The stamps that travel with an alert: cut around every DIASource, from difference, science image and matched template."""

from __future__ import annotations

import numpy as np

from nightstream.engine.config import CutoutConfig
from nightstream.engine.values import Cutouts, Exposure, StampSet, Table
from nightstream.errors import InputError
from nightstream.kernels.stamp_fit import pixel_of
from nightstream.kernels.stamps import gather_stamps
from nightstream.kernels.target import array_module


def cut_stamps(
    difference: Exposure, science: Exposure, matched_template: Exposure, sources: Table, config: CutoutConfig
) -> Cutouts:
    """Cut a square around every row of ``sources``, for each of the three images.

    The exposures are on one pixel grid, each with its PSF. ``sources`` has host columns x, y (pixels) and bbox_size
    (pixels): the side of a stamp is bbox_size, at least ``config.min_size_pix`` and at most ``max_size_pix``. The pixel
    nearest the source is pixel ``size // 2`` of both axes. Every source gets its stamps: what is off the detector is NaN
    with NO_DATA, and a source without a finite position has nothing else.

    Returns `Cutouts` in nJy; boxes and positions are on the host, stamps where the exposures are. Raises InputError
    when an exposure has no PSF.
    """
    x, y = (np.asarray(sources[name], np.float64) for name in ("x", "y"))
    size = np.clip(sources["bbox_size"], config.min_size_pix, config.max_size_pix).astype(np.int32)
    column, row = pixel_of(x, y)
    box = column - size // 2, row - size // 2, size
    images = {"difference": difference, "science": science, "template": matched_template}
    stamps = {name: _stamp_set(exposure, x, y, box) for name, exposure in images.items()}
    return Cutouts(size=size, x0=box[0], y0=box[1], x=x, y=y, **stamps)


def _stamp_set(exposure: Exposure, x, y, box) -> StampSet:
    if exposure.psf is None:
        raise InputError("stamps want the PSF of their image, got none")
    pixels = exposure.pixels
    xp = array_module(pixels.image)
    planes = gather_stamps(
        pixels.image, pixels.mask, pixels.variance, *map(xp.asarray, box), scale=exposure.njy_per_unit
    )  # fmt: skip
    at = (xp.asarray(np.where(np.isfinite(v), v, 0.0)) for v in (x, y))
    return StampSet(*planes, exposure.psf.centred(*at))
