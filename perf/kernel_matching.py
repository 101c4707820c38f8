"""Matching, whitening and proper subtraction of a pair of images, and of two lists of stars, beside plain array expressions.

    python perf/kernel_matching.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-matching-cpu]

The direct ways do less: one least-squares fit of fixed order without clipping; transforms of the whole image for PSFs and
kernels that are the same everywhere, and no mask or variance. SciPy's tree, told the true map of the lists, is the floor of a
search for it. hotpants stands beside the whole subtraction in `subtraction.py`. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import contest
import numpy as np
from contest import DIRECT, OURS, Case
from known_stars import SIGMA_PIX, SKY_NOISE, make_scene
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from nightstream.kernels.convolution import choose_tile, convolve_plane, tile_counts
from nightstream.kernels.decorrelation import DecorrelationKernels, decorrelate, decorrelation_kernels
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.matching_stamps import gather_stamps
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel, polynomial_terms
from nightstream.kernels.psf_matching import choose_basis, fit_matching_kernel, unit_coordinates
from nightstream.kernels.registration import apply_affine, match_stars
from nightstream.kernels.target import scipy_module
from nightstream.kernels.zogy import PSF_FLOOR, ZogyKernels, subtract_proper, zogy_kernels

SHARP_PIX, SCALE = 1.4, 0.8  # sigma of the sharper PSF; flux of the broader image over that of the sharper one
FIT_SIDE, STARS, INNER = 2048, 300, 27  # pixels of the detector; its brightest stars; pixels of a stamp
ORDER, TERMS = 2, 6  # of the direct fit over the detector
BORDER = 40  # pixels left out of checks: transforms of the whole image wrap around
FLAGGED = 3e-3  # of all pixels
FFT_OPERATIONS = 2.5  # per point and binary digit of a real transform
TURN_DEG, SHIFT_PIX, PLACE_ERROR_PIX, TOLERANCE_PIX = 0.1, (12.3, -7.1), 0.1, 1.0


def cases(side: int) -> Iterator[Case]:
    """A pair of images of ``side`` pixels, or of what slow work allows."""
    yield fit(min(side, FIT_SIDE))
    yield whitening(side)
    yield proper(side)
    yield lists(min(side, FIT_SIDE))


def fit(side: int) -> Case:
    """The kernel from the sharper image to the broader one, at the middle of the detector."""
    sharp, broad = (
        make_scene(side, snr=(20.0, 500.0), sigma_pix=sigma, scale=scale, seed=seed)
        for sigma, scale, seed in ((SHARP_PIX, 1.0, 1), (SIGMA_PIX, SCALE, 2))
    )
    brightest = np.argsort(-broad.snr)[:STARS]
    x, y, middle = broad.x[brightest], broad.y[brightest], (side - 1) / 2
    widths = {"source_fwhm_pix": FWHM_PER_SIGMA * SHARP_PIX, "target_fwhm_pix": FWHM_PER_SIGMA * SIGMA_PIX}

    def ours(source, target):
        return fit_matching_kernel(source, target, x, y, **widths, stamp_pix=INNER).kernel_at(middle, middle)[0]

    def direct(xp, source, target):
        basis = choose_basis("gaussian", *widths.values(), None, (4, 2, 2, 2), xp)
        return solve_once(xp, gather_stamps(source, target, x, y, basis, INNER, 0), basis, (side, side))

    def check(results) -> None:
        """The sharp PSF through the kernel is the broad one, to five sigma of what the stars' light tells of `TERMS` numbers.

        The noise is that of both images, the kernel letting through no more than all of the sharp one's.
        """
        noise = SKY_NOISE * np.sqrt(1 + SCALE**2)
        limit = 5 * noise * np.sqrt(TERMS / np.sum(broad.flux[brightest] ** 2))
        stamps = (scene.psf.coefficients[0] for scene in (sharp, broad))
        given, wanted = next(stamps), SCALE * next(stamps)
        for name, kernel in results.items():
            got = fftconvolve(given, kernel, mode="same")
            np.testing.assert_allclose(got, wanted, rtol=0, atol=SCALE * limit, err_msg=name)

    return Case(
        name="fit_matching_kernel",
        size=f"{len(x)} of {INNER}x{INNER}",
        arrays={name: tuple(scene.planes.values()) for name, scene in (("source", sharp), ("target", broad))},
        ours=ours,
        moved_bytes=len(x) * 24 * INNER**2,
        direct=direct,
        check=check,
        tolerance=1e-4,  # of a float32 design, whose rounding the fit amplifies a hundredfold
    )


def solve_once(xp, stamps, basis, shape):
    """Weighted least squares for all functions and the background at `ORDER`: the kernel at the middle."""
    weight = 1 / xp.where(stamps.good, stamps.target_variance, xp.inf)
    weighted = stamps.design * weight[:, None, :]
    gram = xp.matmul(weighted, stamps.design.swapaxes(1, 2).astype(np.float64))  # (n, b, b)
    right = xp.matmul(weighted, stamps.target[:, :, None])[:, :, 0]
    terms = polynomial_terms(*unit_coordinates(stamps.x, stamps.y, shape, xp), ORDER)  # (n, t)
    n, b = right.shape
    products = (terms[:, :, None] * terms[:, None, :]).reshape(n, -1)
    normal = (gram.reshape(n, -1).T @ products).reshape(b, b, TERMS, TERMS).transpose(0, 2, 1, 3)
    solution = xp.linalg.solve(normal.reshape(b * TERMS, b * TERMS), (right.T @ terms).reshape(-1))
    return xp.tensordot(solution.reshape(b, TERMS)[:-1, 0], basis.images, 1)


def whitening(side: int) -> Case:
    """A difference of noise, one image of which went through a Gaussian kernel."""
    shape, tile = (side, side), choose_tile((side, side))
    kernel = PsfModel.gaussian(1.3, 21).coefficients[0]
    kernels = np.broadcast_to(kernel, (*tile_counts(shape, tile), *kernel.shape)).astype(np.float32)
    rng = np.random.default_rng(1)
    fixed, convolved = (rng.normal(0, SKY_NOISE, shape).astype(np.float32) for _ in range(2))
    sky = np.full(kernels.shape[:2], SKY_NOISE**2)
    psi, fixed_squares, convolved_squares, lost = decorrelation_kernels(kernels, sky, sky)
    variance = np.full(shape, SKY_NOISE**2, np.float32)
    white = 2 * SKY_NOISE**2  # a flux's noise at the lowest frequency, which whitening leaves as it is

    def ours(image, mask, variance, stamps, kernel):
        del kernel
        given = DecorrelationKernels(*stamps, lost)
        return decorrelate(image, mask, variance, variance, given, tile, planes=MaskPlane.spreading())

    def direct(xp, image, mask, variance, stamps, kernel):
        fft, power = scipy_module(xp, "fft"), abs(transfer(xp, kernel, shape)) ** 2
        return (fft.irfft2(fft.rfft2(image) * xp.sqrt(2 / (1 + power)), shape),)

    def check(results) -> None:
        """Ours differs from the whole transform by what was cut off psi, and is as noisy as white noise."""
        got, wanted = (inside(results[name][0]) for name in (OURS, DIRECT))
        limit = white * lost * float((psi[0, 0] ** 2).sum())
        assert np.mean((got - wanted) ** 2) < limit, "farther from the whole transform than what was cut off"
        is_as_noisy_as(results, white)

    return Case(
        name="decorrelate",
        size=f"{side}x{side} f32 k{psi.shape[-1]}",
        arrays={
            "image": fixed - convolve_plane(convolved, kernels, tile), "mask": flagged(shape), "variance": variance,
            "stamps": (psi, fixed_squares, convolved_squares), "kernel": kernel,
        },
        ours=ours,
        moved_bytes=7 * variance.nbytes,  # image, mask and two variances read, three planes written
        operations=transforms(5, shape, tile, psi.shape[-1]),  # three planes there, two back
        direct=direct,
        check=check,
        tolerance=1e-5,  # float32 transforms
    )  # fmt: skip


def proper(side: int) -> Case:
    """Two images of the same stars, none so bright that what cut kernels leave of it is seen."""
    shape, tile = (side, side), choose_tile((side, side))
    science, template = (
        make_scene(side, snr=(5.0, 50.0), sigma_pix=sigma, scale=scale, seed=seed)
        for sigma, scale, seed in ((SIGMA_PIX, SCALE, 1), (SHARP_PIX, 1.0, 2))
    )
    sky = np.full(tile_counts(shape, tile), SKY_NOISE**2)
    kernels = zogy_kernels(science.psf, template.psf, sky, sky, shape, tile, flux_scale=SCALE)
    white = (1 + SCALE**2) * SKY_NOISE**2

    def ours(science, template, kernels, stamps):
        del stamps
        return tuple(subtract_proper(science, template, ZogyKernels(*kernels), tile, planes=MaskPlane.spreading()))

    def direct(xp, science, template, kernels, stamps):
        fft = scipy_module(xp, "fft")
        new, old = (transfer(xp, stamp, shape) for stamp in stamps)
        delta = PSF_FLOOR**3 / (PSF_FLOOR**2 + abs(new) ** 2 + abs(old) ** 2)
        new, old = new + delta, old + delta
        gain = xp.sqrt((1 + SCALE**2) / (abs(old) ** 2 + SCALE**2 * abs(new) ** 2))
        difference = old * fft.rfft2(science[0]) - SCALE * new * fft.rfft2(template[0])
        return (fft.irfft2(gain * difference, shape),)

    def check(results) -> None:
        """Ours differs from the whole transform by what was cut off the kernels and what that leaves of stars."""
        got, wanted = (inside(results[name][0]) for name in (OURS, DIRECT))
        power = sum(float((stamps[0][0, 0] ** 2).sum()) for stamps in (kernels.science, kernels.template))
        limit = kernels.truncation * power * SKY_NOISE**2 + (kernels.star_residue * science.flux.max()) ** 2
        assert np.mean((got - wanted) ** 2) < limit, "farther from the whole transform than what was cut off"
        is_as_noisy_as(results, white)

    return Case(
        name="subtract_proper",
        size=f"{side}x{side} f32 k{kernels.science[0].shape[-1]}",
        arrays={
            "science": tuple(science.planes.values()), "template": tuple(template.planes.values()),
            "kernels": tuple(kernels), "stamps": (science.psf.coefficients[0], template.psf.coefficients[0]),
        },
        ours=ours,
        moved_bytes=10 * science.image.nbytes,  # two of image, mask and variance read, four planes written
        operations=transforms(7, shape, tile, kernels.science[0].shape[-1]),  # four planes there, three back
        direct=direct,
        check=check,
        tolerance=1e-5,  # float32 transforms
    )  # fmt: skip


def transfer(xp, stamp, shape):
    """The transform of a stamp (odd, odd) on an image of ``shape``, its middle at the origin."""
    half = stamp.shape[0] // 2
    padded = xp.zeros(shape, np.float32)
    padded[: stamp.shape[0], : stamp.shape[1]] = stamp
    return scipy_module(xp, "fft").rfft2(xp.roll(padded, (-half, -half), axis=(0, 1)))


def transforms(planes: int, shape, tile: int, kernel_side: int) -> float:
    """Operations of so many transforms of a plane, tile by tile, each with a border as wide as the kernel."""
    tiles = shape[0] * shape[1] / tile**2
    points = (tile + kernel_side) ** 2
    return planes * FFT_OPERATIONS * tiles * points * np.log2(points)


def inside(plane):
    return plane[BORDER:-BORDER, BORDER:-BORDER]


def flagged(shape) -> np.ndarray:
    """A mask with single bad pixels."""
    return np.where(np.random.default_rng(3).uniform(size=shape) < FLAGGED, np.int32(MaskPlane.BAD), np.int32(0))


def is_as_noisy_as(results, variance: float) -> None:
    """Raise AssertionError unless the mean square of white noise is ``variance`` within 5 sqrt(2 / N)."""
    for name, found in results.items():
        plane = inside(found[0]).astype(np.float64)
        np.testing.assert_allclose(np.mean(plane**2), variance, rtol=5 * np.sqrt(2 / plane.size), err_msg=name)


def lists(side: int) -> Case:
    """The stars of a detector, turned, shifted and measured again, and in another order."""
    scene, rng = make_scene(side), np.random.default_rng(2)
    n, angle, middle = len(scene.x), np.radians(TURN_DEG), (side - 1) / 2
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    shift = np.array(SHIFT_PIX) + middle - turn @ (middle, middle)
    x2, y2 = apply_affine(np.column_stack([turn, shift]), scene.x, scene.y)
    order = rng.permutation(n)
    x2, y2 = (c[order] + rng.normal(0, PLACE_ERROR_PIX, n) for c in (x2, y2))

    def by_tree():
        mapped = apply_affine(np.column_stack([turn, shift]), scene.x, scene.y)
        tree = cKDTree(np.stack([x2, y2], axis=1))
        return np.arange(n), tree.query(np.stack(mapped, axis=1), distance_upper_bound=TOLERANCE_PIX)[1]

    def check(results) -> None:
        """Stars are 25 pixels apart and measured to a tenth of the tolerance: each finds itself."""
        for name, (first, second) in results.items():
            np.testing.assert_array_equal(first, np.arange(n), err_msg=name)
            np.testing.assert_array_equal(order[second], np.arange(n), err_msg=name)

    def ours(x1, y1, flux1, x2, y2, flux2):
        return match_stars(x1, y1, flux1, x2, y2, flux2, max_offset_pix=50.0, tolerance_pix=TOLERANCE_PIX)

    return Case(
        name="match_stars",
        size=f"{n} x {n}",
        arrays={"x1": scene.x, "y1": scene.y, "flux1": scene.flux, "x2": x2, "y2": y2, "flux2": scene.flux[order]},
        ours=ours,
        moved_bytes=n * (6 * 8 + 2 * 8),
        peers={"scipy cKDTree": by_tree},
        check=check,
    )


if __name__ == "__main__":
    contest.main("kernel-matching", cases, __doc__)
