"""Cosmic rays of one exposure, beside astroscrappy.

    python perf/kernel_cosmic_rays.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-cosmic-rays-cpu]

At most 2048 pixels a side, a quarter of a detector, for ours alone, and 1024 beside astroscrappy, which needs seconds. Both
get image, mask and variance and make up to four passes. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import contest
import numpy as np
from contest import OURS, Case
from star_scene import add_stars

from nightstream.kernels.cosmic_rays import find_cosmic_rays

LARGEST_SIDE, PEER_SIDE = 2048, 1024  # pixels; the second where astroscrappy takes part
SKY = 1200.0  # electrons
FWHM = 3.5  # pixels
SIGMA_OF_FWHM = 2.3548
TRACKS = 460  # a million pixels
PASSES = 4


def cases(side: int) -> Iterator[Case]:
    """Tracks over a field of stars, all of it and a corner."""
    side = min(side, LARGEST_SIDE)
    rng = np.random.default_rng(1)
    stars = add_stars(rng, side, 48, FWHM / SIGMA_OF_FWHM, (100, 20000))
    tracks = add_tracks(rng, side, TRACKS * side**2 // 10**6)
    image = rng.poisson(SKY + stars.light).astype(np.float32) + tracks
    corner = (slice(min(side, PEER_SIDE)),) * 2
    yield finding(image, tracks > 0, ())
    yield finding(image[corner].copy(), tracks[corner] > 0, ("astroscrappy",))


def add_tracks(rng, side: int, number: int) -> np.ndarray:
    """Electrons of thin tracks, of log-normal brightness and exponential length."""
    light = np.zeros((side, side), np.float32)
    for x, y, angle in rng.uniform(0, (side, side, 2 * np.pi), (number, 3)):
        step = np.arange(0, rng.exponential(8) + 1, 0.5)
        row, column = (y + step * np.sin(angle)).astype(int), (x + step * np.cos(angle)).astype(int)
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        light[row[inside], column[inside]] = rng.lognormal(np.log(600), 0.8)
    return light


def finding(image, truth, rivals: tuple[str, ...]) -> Case:
    """Ours has its thresholds from the PSF's width, astroscrappy its defaults."""
    mask, variance, masked = np.zeros(image.shape, np.int32), image.copy(), np.zeros(image.shape, bool)

    def of_astroscrappy():
        import astroscrappy

        options = {"gain": 1.0, "readnoise": 0.0, "satlevel": 1e9, "niter": PASSES}
        return astroscrappy.detect_cosmics(image, inmask=masked, invar=variance, **options)[0]

    def check(results) -> None:
        """Ours finds no smaller a share of the tracks' pixels than the peer, to 5 deviations of a share of so many, and no
        more than one in 20 of what it finds is none."""
        ours = results[OURS]
        error = 5 * np.sqrt(0.25 / truth.sum())
        assert ours[truth].mean() > max(found[truth].mean() for found in results.values()) - error, "tracks are missed"
        assert truth[ours].mean() > 0.95, "stars are taken for tracks"

    return Case(
        name="find_cosmic_rays",
        size=f"{image.shape[0]}x{image.shape[1]} f32",
        arrays={"image": image, "mask": mask, "variance": variance},
        ours=lambda **planes: find_cosmic_rays(**planes, psf_fwhm_pix=FWHM, iterations=PASSES),
        moved_bytes=image.nbytes + mask.nbytes + variance.nbytes + masked.nbytes,
        peers=contest.installed({name: of_astroscrappy for name in rivals}),
        check=check,
    )


if __name__ == "__main__":
    contest.main("kernel-cosmic-rays", cases, __doc__)
