"""The sky under stars, and what is left of it in a difference image, beside SEP, photutils and array expressions.

    python perf/kernel_background.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-background-cpu]

Bins, clipping (3 sigma) and the masked stars are the same for all. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import contest
import numpy as np
from contest import Case
from star_scene import add_stars

from nightstream.kernels.background import background_mesh, level_error
from nightstream.kernels.difference_background import fit_difference_background
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import scipy_module

SKY, SIGMA = 1000.0, 30.0  # electrons
SKY_BIN, DIFFERENCE_BIN, LEAST_BINS = 128, 64, 8  # pixels, pixels, along an axis
TILT = 0.5  # sigma, by which the sky rises along one bin
EDGE = 2  # bins from the border within which others bend a straight sky
CLIP_SIGMA, CLIP_ROUNDS = 3.0, 3
PIXEL_SIGMA = 6  # passed by one of 5e8 levels


def cases(side: int) -> Iterator[Case]:
    """Both backgrounds of a detector of ``side`` pixels."""
    rng = np.random.default_rng(1)
    stars = add_stars(rng, side, 50, 2.0, (100, 10000))
    noise = np.float32(SIGMA) * rng.standard_normal((side, side), np.float32)
    mask = np.where(stars.touched, np.int32(MaskPlane.DETECTED), np.int32(0))
    yield sky(stars.light, noise, mask, min(SKY_BIN, side // LEAST_BINS))
    yield difference(noise, mask, min(DIFFERENCE_BIN, side // LEAST_BINS))


def plane(side: int, bin_pix: int) -> np.ndarray:
    """A sky that rises by half a sigma a bin along x, and falls by as much along y."""
    y, x = np.indices((side, side), np.float32)
    return (x - y) * np.float32(TILT * SIGMA / bin_pix)


def sky(light, noise, mask, bin_pix: int) -> Case:
    """Modes of bins and a surface through them; SEP's and photutils' modes are of the same definition."""
    truth = SKY + plane(len(noise), bin_pix)
    image, masked = truth + light + noise, mask != 0
    return Case(
        name="background_mesh",
        size=f"{len(image)}x{len(image)} f32 b{bin_pix}",
        arrays={"image": image, "mask": mask},
        ours=lambda image, mask: background_mesh(image, mask, bin_pix=bin_pix).image(),
        moved_bytes=image.nbytes + mask.nbytes + image.nbytes,
        direct=lambda xp, image, mask: surface(xp, image, mask, bin_pix, modes),
        peers=contest.installed(
            {
                "sep": lambda: of_sep(image, masked, bin_pix),
                "photutils": lambda: of_photutils(image, masked, bin_pix),
            }
        ),
        check=follows(truth, mask, bin_pix, level_error("mode")),
        tolerance=1e-6,  # a few float32 roundings: sums, in float64, have one order
    )


def difference(noise, mask, bin_pix: int) -> Case:
    """Means of bins and a spline, to be subtracted; SEP takes modes here too, photutils would do as above."""
    variance = np.full(noise.shape, SIGMA**2, np.float32)
    truth = plane(len(noise), len(noise))
    image, masked = truth + noise, mask != 0
    arrays = {"image": image, "mask": mask, "variance": variance}
    planes = MaskPlane.not_sky()
    return Case(
        name="fit_difference_background",
        size=f"{len(image)}x{len(image)} f32 b{bin_pix}",
        arrays=arrays,
        ours=lambda **arrays: fit_difference_background(**arrays, bin_pix=bin_pix, planes=planes).image(),
        moved_bytes=sum(array.nbytes for array in arrays.values()) + image.nbytes,
        direct=lambda xp, image, mask, variance: surface(xp, image, mask, bin_pix, means),
        peers=contest.installed({"sep": lambda: of_sep(image, masked, bin_pix)}),
        check=follows(truth, mask, bin_pix, level_error("mode")),
        tolerance=1e-6,
    )


def follows(truth, mask, bin_pix: int, error: float) -> Callable:
    """The check that skies are the true one, to what the pixels of the emptiest bin allow."""

    def check(results) -> None:
        """A bin's level is right to ``error`` sigma / sqrt(N); tilt adds TILT / sqrt(6) sigma to its scatter."""
        used = (mask == 0).reshape(LEAST_BINS, len(mask) // LEAST_BINS, LEAST_BINS, -1).mean(axis=(1, 3)).min()
        atol = PIXEL_SIGMA * error * SIGMA * np.hypot(1, TILT / 6**0.5) / (bin_pix * np.sqrt(used))
        inner = (slice(EDGE * bin_pix, -EDGE * bin_pix),) * 2
        for name, found in results.items():
            np.testing.assert_allclose(found[inner], truth[inner], rtol=0, atol=atol, err_msg=name)

    return check


def surface(xp, image, mask, bin_pix: int, estimate: Callable):
    """Bins in a row each, clipped, their levels interpolated by a spline."""
    bins = len(image) // bin_pix
    values = xp.where(mask == 0, image, xp.float32(xp.nan))
    values = values.reshape(bins, bin_pix, bins, bin_pix).transpose(0, 2, 1, 3).reshape(bins, bins, -1)
    for _ in range(CLIP_ROUNDS):
        mean, sigma = xp.nanmean(values, axis=2, keepdims=True), xp.nanstd(values, axis=2, keepdims=True)
        values = xp.where(xp.abs(values - mean) <= CLIP_SIGMA * sigma, values, xp.float32(xp.nan))
    return scipy_module(xp, "ndimage").zoom(estimate(xp, values), bin_pix, order=3, mode="nearest", grid_mode=True)


def modes(xp, values):
    return 2.5 * xp.nanmedian(values, axis=2) - 1.5 * xp.nanmean(values, axis=2)


def means(xp, values):
    return xp.nanmean(values, axis=2)


def of_sep(image, masked, bin_pix: int) -> np.ndarray:
    import sep

    return sep.Background(image, mask=masked, bw=bin_pix, bh=bin_pix).back()


def of_photutils(image, masked, bin_pix: int) -> np.ndarray:
    from astropy.stats import SigmaClip
    from photutils.background import Background2D, SExtractorBackground

    estimator = {"sigma_clip": SigmaClip(CLIP_SIGMA, maxiters=20), "bkg_estimator": SExtractorBackground(sigma_clip=None)}
    return Background2D(image, bin_pix, mask=masked, exclude_percentile=90, **estimator).background


if __name__ == "__main__":
    contest.main("kernel-background", cases, __doc__)
