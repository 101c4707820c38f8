"""Sources found by correlation with the PSF, of both signs.

Owns the score image, thresholding, footprints and peaks. Measuring what was found is `centroid` and
`photometry`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, chunks, device_function, for_each, hot_loop, scipy_module

TRIM = 1e-4  # share of sum(P^2) that may be left out of the detection stamp: a loss of 5e-5 in S/N
ROWS_PER_CHUNK = 64  # that a thread prepares at a time
BLOCK = 512  # pixels of a row whose sums stay in the innermost cache on the CPU


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Peaks in raster order, and where they were found. Arrays (n,) unless said otherwise."""

    x: Any  # float64, pixel of the peak
    y: Any
    snr: Any  # float64, score at the peak; negative for negative sources
    is_negative: Any  # bool
    footprint: Any  # int32, label of the footprint the peak lies in; lobes that touch share one
    footprint_area: Any  # int32, pixels of that footprint
    bbox_size: Any  # int32, even side of the least square about the peak that holds that footprint
    labels: Any  # (ny, nx) int32, 0 outside footprints
    score: Any  # (ny, nx) float32, signal to noise of a point source at each pixel; 0 on unusable pixels

    def __len__(self) -> int:
        return len(self.x)


@device_function
def _add_row(top, bottom, taps, row, noise, width):
    """Add one row of taps, in their order, four at a time to spare the sums' way to memory and back."""
    size = taps.shape[0]
    for i in range(0, size - 3, 4):
        a, b, c, d = taps[i], taps[i + 1], taps[i + 2], taps[i + 3]
        a2, b2, c2, d2 = a * a, b * b, c * c, d * d
        p0, p1, p2, p3 = row[i:], row[i + 1 :], row[i + 2 :], row[i + 3 :]
        v0, v1, v2, v3 = noise[i:], noise[i + 1 :], noise[i + 2 :], noise[i + 3 :]
        for x in range(width):
            top[x] = (((top[x] + a * p0[x]) + b * p1[x]) + c * p2[x]) + d * p3[x]
            bottom[x] = (((bottom[x] + a2 * v0[x]) + b2 * v1[x]) + c2 * v2[x]) + d2 * v3[x]
    for i in range(size - size % 4, size):
        p, p2, row_i, noise_i = taps[i], taps[i] * taps[i], row[i:], noise[i:]
        for x in range(width):
            top[x] += p * row_i[x]
            bottom[x] += p2 * noise_i[x]


@hot_loop("detection")
def correlate_score(signal, variance, kernel, ny, nx, size, score):
    """Set score[y, x] = sum(P D) / sqrt(sum(P^2 V)) from planes padded by size // 2; 0 where none is usable.

    float32 sums in the order of the stamp's pixels: a relative error of at most size^2 * 6e-8 of sum |P D|,
    far below the noise, at twice the speed of float64.
    """
    for y in numba.prange(ny):
        top = np.empty(BLOCK, np.float32)
        bottom = np.empty(BLOCK, np.float32)
        for x0 in range(0, nx, BLOCK):
            width = min(BLOCK, nx - x0)
            top[:] = np.float32(0.0)
            bottom[:] = np.float32(0.0)
            for j in range(size):
                _add_row(top, bottom, kernel[j], signal[y + j, x0:], variance[y + j, x0:], width)
            for x in range(width):
                if bottom[x] > np.float32(0.0):
                    score[y, x0 + x] = top[x] / np.sqrt(bottom[x])
                else:
                    score[y, x0 + x] = np.float32(0.0)


def correlate_score_reference(image, variance, usable, kernel):
    """Define the score in float64 with SciPy: usable pixels correlated with P and P^2; 0 where there is
    none."""
    from scipy.ndimage import correlate

    signal = np.where(usable, image, 0.0).astype(float)
    noise = np.where(usable, variance, 0.0).astype(float)
    kernel = np.asarray(kernel, float)
    top, bottom = (correlate(a, k, mode="constant") for a, k in ((signal, kernel), (noise, kernel**2)))
    return np.where(bottom > 0, top / np.sqrt(np.where(bottom > 0, bottom, 1.0)), 0.0)


def detect(
    image, mask, variance, psf_stamp, *, threshold: float = 5.0, polarity: str = "both", planes=None,
    peak_radius_pix: int = 2, grow_pix: int | None = None,
) -> Detections:  # fmt: skip
    """Find point sources above ``threshold`` sigma in the image correlated with the PSF.

    ``image`` float32, ``mask`` int32, ``variance`` float32 are (ny, nx), background subtracted and with
    independent pixel noise; ``psf_stamp`` (size, size), size odd, centred. The score is the signal to noise
    of the best-fitting flux at each pixel. Pixels in ``planes`` (default `MaskPlane.unusable`), NaN or
    without positive variance enter no sum and hold no peak; the remaining pixels of a source still find it.

    Footprints are the 8-connected regions of |score| >= threshold, of both signs together, each grown by
    ``grow_pix`` (default: one sigma of the PSF, rounded up) so that the lobes of a dipole become one. A peak
    is the largest score of its sign within ``peak_radius_pix`` in x and y; of equal ones the first in raster
    order. ``polarity`` is "both" or "positive". An image without usable pixels gives no detections.
    """
    score = score_image(image, mask, variance, psf_stamp, planes=planes)
    grow_pix = _stamp_sigma(psf_stamp) if grow_pix is None else grow_pix
    return detect_score(score, threshold=threshold, polarity=polarity, peak_radius_pix=peak_radius_pix, grow_pix=grow_pix)


def detect_score(
    score, *, grow_pix: int, threshold: float = 5.0, polarity: str = "both", peak_radius_pix: int = 2
) -> Detections:  # fmt: skip
    """Find point sources in a ready score image, (ny, nx) float32, as `detect` does in the one it makes.

    ``score`` is the signal to noise of a point source at each pixel, finite, and 0 where none can be told; ``grow_pix``,
    about one sigma of the PSF, joins the lobes of a dipole. An empty image or one of zeros gives no detections.
    """
    xp = array_module(score)
    if polarity not in ("both", "positive"):
        raise InputError(f"polarity must be 'both' or 'positive', got {polarity!r}")
    above = (xp.abs(score) if polarity == "both" else score) >= threshold
    labels = _label(above, grow_pix)
    row, column = _peaks(score, above, peak_radius_pix)
    snr = score[row, column].astype(np.float64)
    footprint = labels[row, column]
    area, first, last = _footprint_boxes(labels)
    side = _square_about(row, column, first[footprint], last[footprint])
    x, y = column.astype(np.float64), row.astype(np.float64)
    return Detections(x, y, snr, snr < 0, footprint, area[footprint], side, labels, score)


def score_image(image, mask, variance, psf_stamp, *, planes=None):
    """Return the (ny, nx) float32 score, as in `detect`: 0 on unusable pixels."""
    xp = array_module(image)
    planes = MaskPlane.unusable() if planes is None else planes
    kernel = xp.ascontiguousarray(_trimmed(psf_stamp), dtype=np.float32)
    size = kernel.shape[0]
    half, (ny, nx) = size // 2, image.shape
    padded = xp.zeros((2, ny + 2 * half, nx + 2 * half), np.float32)
    inside = padded[:, half : half + ny, half : half + nx]
    usable, score = xp.empty((ny, nx), bool), xp.empty((ny, nx), np.float32)
    rows = chunks(ny, ROWS_PER_CHUNK, xp)

    def choose(r: slice) -> None:
        usable[r] = ((mask[r] & int(planes)) == 0) & xp.isfinite(image[r]) & xp.isfinite(variance[r]) & (variance[r] > 0)
        xp.copyto(inside[0, r], image[r], where=usable[r])
        xp.copyto(inside[1, r], variance[r], where=usable[r])

    for_each(choose, rows, xp)
    sizes = (np.int32(v) for v in (ny, nx, size))
    correlate_score(Launch.over((ny, nx), (64, 4)), padded[0], padded[1], kernel, *sizes, score)
    for_each(lambda r: xp.copyto(score[r], np.float32(0), where=~usable[r]), rows, xp)
    return score


def mark_detected(mask, detections: Detections):
    """Return ``mask`` with DETECTED and DETECTED_NEGATIVE set in the footprints, by the sign of the score."""
    inside = detections.labels > 0
    marked = mask.astype(np.int32)
    for of_sign, plane in ((detections.score > 0, MaskPlane.DETECTED), (detections.score < 0, MaskPlane.DETECTED_NEGATIVE)):
        marked |= (inside & of_sign) * np.int32(plane)
    return marked


def _trimmed(stamp):
    """Return the smallest centred square of ``stamp`` outside which less than ``TRIM`` of sum(P^2) lies."""
    xp = array_module(stamp)
    size = stamp.shape[0]
    if stamp.ndim != 2 or stamp.shape[1] != size or size % 2 == 0:
        raise InputError(f"PSF stamp must be square with an odd side, got {stamp.shape}")
    power = stamp.astype(np.float64) ** 2
    half = size // 2
    offset = xp.abs(xp.arange(size) - half)
    ring = xp.maximum(offset[:, None], offset[None, :])
    within = ring[None] <= xp.arange(half + 1)[:, None, None]
    enclosed = xp.where(within, power, 0).sum(axis=(1, 2))  # a weighted bincount adds in no fixed order on a GPU
    keep = int((enclosed < (1 - TRIM) * enclosed[-1]).sum())
    return stamp[half - keep : half + keep + 1, half - keep : half + keep + 1]


def _stamp_sigma(stamp) -> int:
    """Return the Gaussian sigma of the noise area 1 / sum(P^2) = 4 pi sigma^2, rounded up to pixels."""
    power = float((stamp.astype(np.float64) ** 2).sum()) / float(stamp.sum()) ** 2
    return math.ceil(math.sqrt(1 / (4 * math.pi * power)))


def _label(above, grow_pix: int):
    """Return int32 labels of the 8-connected regions of ``above`` grown by ``grow_pix``."""
    xp = array_module(above)
    ndimage = scipy_module(xp, "ndimage")
    grown = _grow(above, grow_pix)
    return ndimage.label(grown, structure=xp.ones((3, 3), dtype=bool))[0].astype(np.int32)


def _grow(above, n_pix: int):
    """Return ``above`` with each True spread over the square of ``n_pix`` pixels around it."""
    tall = above.copy()
    for shift in range(1, n_pix + 1):
        tall[shift:] |= above[:-shift]
        tall[:-shift] |= above[shift:]
    wide = tall.copy()
    for shift in range(1, n_pix + 1):
        wide[:, shift:] |= tall[:, :-shift]
        wide[:, :-shift] |= tall[:, shift:]
    return wide


def _peaks(score, above, radius: int):
    """Return (row, column) of the pixels ``above`` that no neighbour of their sign beats, in raster order."""
    xp = array_module(score)
    reach = range(-radius, radius + 1)
    steps = sorted(((dy, dx) for dy in reach for dx in reach if (dy, dx) != (0, 0)), key=lambda s: s[0] ** 2 + s[1] ** 2)
    padded = xp.pad(score, radius)
    width, padded = padded.shape[1], padded.ravel()
    row, column = _places(above)
    for group in (steps[:4], steps[4:]):  # the nearest four leave few for the rest to judge
        at = (row + radius) * width + column + radius
        value = padded[at]
        height, sign = xp.abs(value), xp.sign(value)
        is_peak = xp.ones(row.shape, dtype=bool)
        for dy, dx in group:
            other = sign * padded[at + (dy * width + dx)]
            is_peak &= (other < height) if (dy, dx) < (0, 0) else (other <= height)
        row, column = row[is_peak], column[is_peak]
    return row, column


def _places(chosen):
    """Return (row, column) of the True pixels of a plane, in raster order; three times faster than ``nonzero`` of two axes."""
    place = array_module(chosen).flatnonzero(chosen)
    row = place // max(chosen.shape[1], 1)
    return row, place - row * chosen.shape[1]


def _footprint_boxes(labels):
    """Return (area (n,), first (n, 2), last (n, 2)), indexed by label: pixels, and the ends of the box in y and x."""
    xp = array_module(labels)
    row, column = _places(labels != 0)
    label = labels[row, column].astype(np.int64)
    n = int(labels.max()) + 1 if labels.size else 1
    ends = [_ends(label, position, n) for position in (row, column)]
    first, last = (xp.stack(pair, axis=-1) for pair in zip(*ends, strict=True))
    return xp.bincount(label, minlength=n).astype(np.int32), first, last


def _ends(label, position, n: int):
    """Return for each label 0..n-1 the first and last ``position``; anything where it has none."""
    xp = array_module(label)
    if position.size == 0:
        return xp.zeros(n, np.int64), xp.zeros(n, np.int64)
    stride = int(position.max()) + 1
    key = xp.sort(label * stride + position)
    first = xp.searchsorted(key, xp.arange(n) * stride)
    last = xp.searchsorted(key, xp.arange(1, n + 1) * stride) - 1
    offset = xp.arange(n) * stride
    return key[xp.minimum(first, key.size - 1)] - offset, key[xp.maximum(last, 0)] - offset


def _square_about(row, column, first, last):
    """Return (n,) int32 even sides of the least squares about pixels, their pixel ``side // 2``, that hold the boxes."""
    xp = array_module(row)
    at = xp.stack([row, column], axis=-1)
    return (2 * xp.maximum((at - first).max(axis=1), (last - at).max(axis=1) + 1)).astype(np.int32)
