"""Clipped means of eight frames, as of calibrations and of warped visits, beside ccdproc, NumPy and array expressions.

    python perf/kernel_combine.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-combine-cpu]

At most 1024 pixels a side, a sixteenth of a detector, as ccdproc needs seconds. Ours combines image, mask and variance and
clips by the variance; ccdproc clips the images by their scatter and has no variance of the mean, NumPy's median clips
nothing. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import contest
import numpy as np
from astropy.nddata import CCDData
from contest import DIRECT, OURS, Case

from nightstream.kernels.coadd import coadd
from nightstream.kernels.combine import DEFAULT_PLANES, combine_frames
from nightstream.kernels.mask import MaskPlane

LARGEST_SIDE = 1024  # pixels
FRAMES = 8
LEVEL = 1000.0  # electrons
SIGMAS = np.linspace(20, 30, FRAMES)  # of the frames' noise
OUTLIERS, MASKED = 2e-3, 5e-3  # of all values
CLIP_SIGMA, ROUNDS = 4.0, 3


def cases(side: int) -> Iterator[Case]:
    """Equal weights, and those of a coadd."""
    rng = np.random.default_rng(1)
    shape = (FRAMES, *(min(side, LARGEST_SIDE),) * 2)
    images = rng.normal(LEVEL, SIGMAS[:, None, None], shape).astype(np.float32)
    struck = rng.uniform(size=shape)
    images[struck < OUTLIERS] += np.float32(50 * SIGMAS.max())
    masks = np.where(struck > 1 - MASKED, np.int32(MaskPlane.BAD), np.int32(0))
    variances = np.ascontiguousarray(np.broadcast_to(np.float32(SIGMAS[:, None, None] ** 2), shape))
    stacks = {"images": images, "masks": masks, "variances": variances}
    weights = 1 / variances[:, 0, 0].astype(np.float64)
    yield combining("combine_frames", stacks, np.ones(FRAMES), lambda **stacks: tuple(combine_frames(**stacks)))
    yield combining(
        "coadd", stacks, weights, lambda **stacks: tuple(coadd(**stacks, clip_sigma=CLIP_SIGMA, clip_tolerance=0.0)[:4])
    )


def combining(name: str, stacks: dict[str, np.ndarray], weights, ours: Callable) -> Case:
    """The mean of all frames with ``weights``; the others are given those that a coadd finds."""
    images, masks = stacks["images"], stacks["masks"]
    usable = np.where(masks == 0, images, np.float32(np.nan))
    frames = [CCDData(image, mask=mask != 0, unit="electron") for image, mask in zip(images, masks, strict=True)]

    def check(results) -> None:
        """Array expressions add in the same order; packages scatter no more than the median, and no outlier is left: one
        would move the mean of eight by 50 / 8 of the largest sigma."""
        for got, wanted in zip(results[DIRECT], results[OURS], strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=DIRECT)
        for rival in results.keys() - {DIRECT}:
            image = results[OURS][0] if rival == OURS else results[rival]
            assert np.abs(image - LEVEL).max() < 5 * SIGMAS.max(), f"{rival} has outliers"
            assert image.std() < np.sqrt(np.pi / 2) * SIGMAS.max() / np.sqrt(FRAMES), f"{rival} is noisy"

    return Case(
        name=name,
        size=f"{'x'.join(map(str, images.shape))} f32",
        arrays=stacks,
        ours=ours,
        moved_bytes=(3 * FRAMES + 4) * images[0].nbytes,
        direct=lambda xp, **stacks: clip_plainly(xp, **stacks, weights=weights),
        peers=contest.installed(
            {
                "ccdproc": lambda: of_ccdproc(frames, weights),
                "numpy nanmedian": lambda: np.nanmedian(usable, axis=0),
            }
        ),
        check=check,
    )


def clip_plainly(xp, images, masks, variances, weights):
    """The same additions in the same order, a frame at a time on whole planes."""
    usable = ((masks & np.int32(DEFAULT_PLANES)) == 0) & xp.isfinite(images) & xp.isfinite(variances)
    centre, spread = lower_medians(xp, images, variances, usable)
    for _ in range(ROUNDS):
        near = xp.abs(images - centre) <= CLIP_SIGMA * xp.sqrt(variances + spread)
        centre, bits, variance, used = weighted_mean(xp, images, masks, variances, usable & near, weights)
        spread = 0.0
    return centre.astype(xp.float32), bits, variance.astype(xp.float32), used


def lower_medians(xp, images, variances, usable):
    """The median, of an even number the lower one, and the variance of a mean of all others but one, float64."""
    order = xp.argsort(xp.where(usable, images, xp.float32(xp.inf)), axis=0)
    count = usable.sum(axis=0)
    middle = xp.take_along_axis(order, xp.maximum(count - 1, 0)[None] // 2, axis=0)
    centre, variance = (xp.take_along_axis(stack, middle, axis=0)[0].astype(xp.float64) for stack in (images, variances))
    return centre, variance / xp.maximum(count - 1, 1)


def weighted_mean(xp, images, masks, variances, kept, weights):
    """The mean of what is kept, its planes, the mean's variance, and how many enter."""
    total, total_weight, total_variance = (xp.zeros(images.shape[1:]) for _ in range(3))
    bits = xp.zeros(images.shape[1:], xp.int32)
    for image, mask, variance, inside, weight in zip(images, masks, variances, kept, map(float, weights), strict=True):
        total += xp.where(inside, weight * image.astype(xp.float64), 0.0)
        total_weight += xp.where(inside, weight, 0.0)
        total_variance += xp.where(inside, weight * weight * variance.astype(xp.float64), 0.0)
        bits |= xp.where(inside, mask, np.int32(0))
    return total / total_weight, bits, total_variance / (total_weight * total_weight), kept.sum(axis=0).astype(xp.int32)


def of_ccdproc(frames, weights) -> np.ndarray:
    """About the median by the median absolute deviation: of eight values none is 3 of their own deviations off."""
    from ccdproc import Combiner

    combiner = Combiner(frames, dtype=np.float32)
    combiner.sigma_clipping(CLIP_SIGMA, CLIP_SIGMA, func="median", dev_func="mad_std")
    if np.ptp(weights):  # a weight a frame would count what is left out as 0
        combiner.weights = np.where(combiner.data_arr.mask, 0.0, weights[:, None, None])
    return combiner.average_combine().data


if __name__ == "__main__":
    contest.main("kernel-combine", cases, __doc__)
