"""Pixels that do not behave as their neighbours do, and columns made of them. Array programs."""

from __future__ import annotations

from typing import Any

from nightstream.kernels.target import array_module, scipy_module


def find_outliers(image, variance, *, limit: float, sigma: float, window_pix: int) -> Any:
    """Return where (ny, nx) ``image`` differs from the median of its row's neighbours, bool.

    A pixel differs if it is both ``limit`` (unit of the image) and ``sigma`` times the root of its ``variance`` away
    from the median of ``window_pix`` pixels along the row. Whole columns are found too, up to half a window wide; so
    are pixels that are not finite.
    """
    xp = array_module(image)
    known = xp.isfinite(image)
    filled = xp.where(known, image, 0)
    neighbours = scipy_module(xp, "ndimage").median_filter(filled, size=(1, window_pix), mode="reflect")
    away = xp.abs(filled - neighbours)
    noise = sigma * xp.sqrt(xp.where(xp.isfinite(variance), variance, 0))
    return ~known | ((away > limit) & (away > noise))


def merge_columns(is_bad, *, min_pixels: int, max_gap_pix: int) -> Any:
    """Return ``is_bad`` (ny, nx) with the gaps filled in columns that hold at least ``min_pixels`` bad pixels.

    A gap is filled if it is at most ``max_gap_pix`` long and lies between two bad pixels of the column.
    """
    xp = array_module(is_bad)
    reach = max_gap_pix + 1
    padded = xp.pad(is_bad, ((reach, reach), (0, 0)))  # a closing loses what lies within reach of the border
    closed = scipy_module(xp, "ndimage").binary_closing(padded, xp.ones((reach, 1), bool))
    is_gap = closed[reach : reach + len(is_bad)]
    return is_bad | (is_gap & (is_bad.sum(axis=0) >= min_pixels)[None, :])
