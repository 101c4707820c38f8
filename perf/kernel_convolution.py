"""Convolution with kernels that vary over the detector, and how far flags spread with them, beside SciPy.

    python perf/kernel_convolution.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-convolution-cpu]

SciPy's overlap-add and direct sums know one kernel for the whole image; so there is one here, and ours takes no advantage
of that. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import contest
import numpy as np
import scipy.signal
from contest import DIRECT, OURS, Case

from nightstream.kernels.convolution import choose_tile, convolve_plane, tile_counts
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.mask_spreading import spread_mask
from nightstream.kernels.target import scipy_module

SIDES = (11, 31)  # pixels of a kernel
FLAGGED = 3e-3  # of all pixels
FFT_OPERATIONS = 2.5  # per point and binary digit of a real transform


def kernel_of(side: int) -> np.ndarray:
    """A Gaussian of a fifth of the side, turned and off its centre; its sum is 1."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    stamp = np.exp(-0.5 * ((x - 0.3) ** 2 + (y + 0.2) ** 2 + 0.4 * x * y) / (side / 10) ** 2)
    return stamp / stamp.sum()


def cases(side: int) -> Iterator[Case]:
    """Two sizes of kernel on a detector of ``side`` pixels, and its mask."""
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (side, side)).astype(np.float32)
    mask = np.where(rng.uniform(size=image.shape) < FLAGGED, np.int32(MaskPlane.BAD), np.int32(0))
    tile = choose_tile(image.shape)
    for k in SIDES:
        kernel = kernel_of(k)
        kernels = np.ascontiguousarray(np.broadcast_to(kernel, (*tile_counts(image.shape, tile), k, k)))
        yield convolution(image, kernel, kernels, tile)
    yield spreading(mask, kernel, kernels, tile)


def convolution(image, kernel, kernels, tile: int) -> Case:
    """Ours per tile; SciPy's overlap-add in float32, the fastest of its ways for these sizes."""
    single = kernel.astype(np.float32)
    points = image.size * (1 + kernel.shape[0] / tile) ** 2

    def check(results) -> None:
        """Float32 transforms: 1e-6 of the image's scatter, 1, times a few digits of the transforms' depth."""
        for name, other in results.items():
            np.testing.assert_allclose(results[OURS], other, atol=1e-5, err_msg=name)

    return Case(
        name="convolve_plane",
        size=f"{image.shape[0]}x{image.shape[1]} f32 k{len(kernel)}",
        arrays={"image": image, "kernels": kernels},
        ours=lambda image, kernels: convolve_plane(image, kernels, tile),
        moved_bytes=2 * image.nbytes,
        operations=2 * FFT_OPERATIONS * points * np.log2(points / (image.size / tile**2)),
        peers={"scipy oaconvolve": lambda: scipy.signal.oaconvolve(image, single, mode="same")},
        check=check,
        tolerance=1e-5,
    )


def spreading(mask, kernel, kernels, tile: int) -> Case:
    """Ours weighs every tap; the direct way grows one plane by a box as large as the kernel."""
    reach = len(kernel)

    def grown(xp, mask, kernels):
        del kernels
        return scipy_module(xp, "ndimage").maximum_filter(mask, size=reach, mode="constant")

    def check(results) -> None:
        """What spreads by weight stays within the box, the detector's edge apart."""
        inner = (slice(reach, -reach),) * 2
        assert not (results[OURS][inner] & ~results[DIRECT][inner]).any(), "a flag left the kernel's box"

    return Case(
        name="spread_mask",
        size=f"{mask.shape[0]}x{mask.shape[1]} i32 k{reach}",
        arrays={"mask": mask, "kernels": kernels},
        ours=lambda mask, kernels: spread_mask(mask, kernels, tile),
        moved_bytes=2 * mask.nbytes,
        direct=grown,
        check=check,
    )


if __name__ == "__main__":
    contest.main("kernel-convolution", cases, __doc__)
