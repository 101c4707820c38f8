"""Stamps for the matching kernel: cut out of both images, checked, and convolved with the basis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nightstream.kernels.matching_basis import STAMPS_PER_CHUNK, KernelBasis, convolve_stamps
from nightstream.kernels.target import array_module, chunks, for_each

CORE_PIX = 2  # half side of the centre in which no pixel may be bad
GOOD_FRACTION = 0.5  # of a stamp's pixels that must be good


@dataclass(frozen=True, slots=True, eq=False)
class Stamps:
    """What the fit needs of every stamp; n stamps of m pixels, float64 unless stated."""

    design: Any  # (n, n_basis + 1, m) float32: source convolved with each basis function, and 1 for the background
    target: Any  # (n, m)
    target_variance: Any  # (n, m)
    source_variance: Any  # (n, m)
    good: Any  # (n, m) bool
    x: Any  # (n,) position of the stamp's centre
    y: Any
    outside: int  # positions dropped because the kernel leaves the image at the star itself
    bad: int  # and because of bad pixels

    @property
    def count(self) -> int:
        return len(self.x)

    @property
    def side(self) -> int:
        """Width and height of a stamp in pixels; odd."""
        return math.isqrt(self.target.shape[1])

    def why(self) -> str:
        """Counts of what was dropped, for messages."""
        return f"{self.outside} too close to the border, {self.bad} with bad pixels"


def gather_stamps(source, target, x, y, basis: KernelBasis, inner: int, planes: int) -> Stamps:
    """Cut stamps of ``inner`` pixels (source: plus the kernel's reach) around the pixels nearest to ``x, y``.

    What lies beyond the image is bad, and so are the pixels whose kernel reaches there: a star near the border counts with
    the side that is left, if that is most of it.
    """
    xp = array_module(source[0])
    reach, shape = basis.size // 2, source[0].shape
    ix, iy = (xp.rint(xp.asarray(c)).astype(xp.int64) for c in (x, y))
    inside = _inside(ix, iy, shape, reach + CORE_PIX)
    ix, iy = ix[inside], iy[inside]
    values = xp.empty((len(ix), inner + 2 * reach, inner + 2 * reach), xp.float32)
    good, keep = xp.empty((len(ix), inner, inner), bool), xp.empty(len(ix), bool)

    def cut_chunk(chunk: slice) -> None:
        outer, outer_beyond = _cutter(ix[chunk], iy[chunk], inner + 2 * reach, shape, xp)
        cut, beyond = _cutter(ix[chunk], iy[chunk], inner, shape, xp)
        source_bad = outer_beyond | _bad(source[0][outer], source[1][outer], planes)
        target_bad = beyond | _bad(target[0][cut], target[1][cut], planes)
        values[chunk] = xp.where(source_bad, xp.float32(0), source[0][outer])
        good[chunk] = ~(target_bad | _under_kernel(source_bad, basis.size))
        core = target_bad | source_bad[:, reach : reach + inner, reach : reach + inner]
        keep[chunk] = _usable(good[chunk], core, inner)

    for_each(cut_chunk, chunks(len(ix), STAMPS_PER_CHUNK, xp), xp)
    cut, _ = _cutter(ix, iy, inner, shape, xp)
    values, good = values[keep], good[keep].reshape(-1, inner * inner)
    design = xp.empty((len(values), len(basis) + 1, inner * inner), xp.float32)
    design[:, -1] = 1
    convolve_stamps(values, basis, out=design[:, :-1].reshape(len(values), len(basis), inner, inner))
    flat = [plane[cut][keep].reshape(good.shape) for plane in (target[0], target[2], source[2])]
    flat = [xp.where(good, plane, 0).astype(xp.float64) for plane in flat]
    return Stamps(design, *flat, good, ix[keep], iy[keep], int((~inside).sum()), int((~keep).sum()))


def _inside(ix, iy, shape, margin):
    ny, nx = shape
    return (ix >= margin) & (ix < nx - margin) & (iy >= margin) & (iy < ny - margin)


def _cutter(ix, iy, side, shape, xp):
    """Return the rows and columns of stamps, kept within the image of ``shape``, and (n, side, side) bool of those beyond."""
    offset = xp.arange(side) - side // 2
    rows, columns = (iy[:, None] + offset)[:, :, None], (ix[:, None] + offset)[:, None, :]
    ny, nx = shape
    beyond = (rows < 0) | (rows >= ny) | (columns < 0) | (columns >= nx)
    return (xp.clip(rows, 0, ny - 1), xp.clip(columns, 0, nx - 1)), beyond


def _bad(image, mask, planes):
    xp = array_module(image)
    return ~xp.isfinite(image) | ((mask & planes) != 0)


def _under_kernel(bad, size):
    """(n, s, s) bool: is any bad pixel within the kernel's box around the pixel."""
    xp = array_module(bad)
    width = bad.shape[1]
    inner = width - size + 1
    reach = xp.arange(width)[:, None] - xp.arange(inner)[None, :]
    band = ((reach >= 0) & (reach < size)).astype(xp.float32)
    return (band.T @ (bad.astype(xp.float32) @ band)) > 0.5


def _usable(good, bad, inner):
    centre = slice(inner // 2 - CORE_PIX, inner // 2 + CORE_PIX + 1)
    return ~bad[:, centre, centre].any(axis=(1, 2)) & (good.mean(axis=(1, 2)) > GOOD_FRACTION)
