"""Detection by correlation with the PSF, and the flags that come of it, beside SEP, photutils and plain array expressions.

    python perf/kernel_detection.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-detection-cpu]

SEP and photutils stand beside ours on 1024 x 1024 pixels, where SEP takes about a second. SEP gets the 11 x 11 pixels of
the PSF that ours keeps, and neither deblends nor cleans; DAOStarFinder a kernel of four sigma that refuses no shape, since
its usual one loses a star of S/N 10. Neither of them takes a mask here. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import contest
import numpy as np
from contest import Case, installed
from known_stars import PSF_SIDE, SKY_NOISE, StarScene, make_scene
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

from nightstream.kernels.detection import Detections, detect, mark_detected
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.pixel_flags import FLAGGED_PLANES, pixel_flags
from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.kernels.target import scipy_module

THRESHOLD = 5.0  # sigma
PEERS_SIDE = 1024  # pixels
KEPT_HALF = 5  # pixels: half side of what `detect` keeps of the PSF
PEAK_SIDE = 5  # pixels: of the square whose highest a peak is
FLAGGED = 3e-3  # of all pixels


def cases(side: int) -> Iterator[Case]:
    """Sources on a detector of ``side`` pixels and on a small one; the former's mask and flags."""
    scene = make_scene(side)
    yield detection(scene, {})
    small = make_scene(min(side, PEERS_SIDE))
    yield detection(small, installed({"sep": lambda: by_sep(small), "photutils": lambda: by_photutils(small)}))
    yield marking(scene)
    yield flags(scene)


def detection(scene: StarScene, peers) -> Case:
    """Ours gives footprints too; the plain way only peaks of the positive sources."""
    stamp = scene.psf.coefficients[0]
    ny, nx = scene.image.shape

    def check(results) -> None:
        """A star of the threshold and 5 sigma more is missed once in 3 million.

        It is found to half a pixel along each axis, the peak's, and 5 sigma.
        """
        sure = scene.snr > THRESHOLD + 5
        limit = np.sqrt(0.5) + 5 * scene.position_error(sure)
        for name, found in results.items():
            x, y = (found.x, found.y) if isinstance(found, Detections) else found
            distance, _ = cKDTree(np.stack([x, y], axis=1)).query(np.stack([scene.x[sure], scene.y[sure]], axis=1))
            assert (distance < limit).all(), f"{name} misses {(distance >= limit).sum()} of {sure.sum()} stars"

    return Case(
        name="detect",
        size=f"{ny}x{nx} f32",
        arrays=scene.planes | {"stamp": stamp},
        ours=lambda image, mask, variance, stamp: detect(image, mask, variance, stamp, threshold=THRESHOLD),
        moved_bytes=5 * scene.image.nbytes,  # three planes read, score and labels written
        operations=4.0 * (2 * KEPT_HALF + 1) ** 2 * scene.image.size,  # both sums, pixel by pixel
        direct=peaks_of_transforms,
        peers=peers,
        check=check,
    )


def peaks_of_transforms(xp, image, mask, variance, stamp):
    """The score by transforms of the whole image, and its peaks by a filter: x, y."""
    fft, ndimage = scipy_module(xp, "fft"), scipy_module(xp, "ndimage")
    stamp, half = stamp.astype(np.float32), PSF_SIDE // 2
    good = (mask & int(MaskPlane.unusable())) == 0
    shape = tuple(fft.next_fast_len(n + 2 * half, real=True) for n in image.shape)

    def correlated(plane, kernel):
        product = fft.rfft2(xp.where(good, plane, np.float32(0)), shape) * fft.rfft2(kernel[::-1, ::-1], shape)
        return fft.irfft2(product, shape)[half : half + image.shape[0], half : half + image.shape[1]]

    score = correlated(image, stamp) / xp.sqrt(xp.maximum(correlated(variance, stamp**2), np.float32(1e-30)))
    row, column = xp.nonzero((score >= THRESHOLD) & (score == ndimage.maximum_filter(score, size=PEAK_SIDE)))
    return column, row


def by_sep(scene: StarScene):
    """The matched filter of SEP with the variance: x, y."""
    import sep

    sep.set_extract_pixstack(scene.image.size)
    kept = slice(PSF_SIDE // 2 - KEPT_HALF, PSF_SIDE // 2 + KEPT_HALF + 1)
    kernel = scene.psf.coefficients[0, kept, kept].astype(np.float32)
    simply = {"minarea": 1, "deblend_cont": 1.0, "clean": False}
    found = sep.extract(scene.image, THRESHOLD, var=scene.variance, filter_kernel=kernel, **simply)
    return found["x"], found["y"]


def by_photutils(scene: StarScene):
    """DAOStarFinder with noise that is the same everywhere: x, y."""
    from photutils.detection import DAOStarFinder

    any_shape = {"sharpness_range": (-np.inf, np.inf), "roundness_range": (-np.inf, np.inf)}
    fwhm = FWHM_PER_SIGMA * scene.sigma_pix
    found = DAOStarFinder(threshold=THRESHOLD * SKY_NOISE, fwhm=fwhm, sigma_radius=4.0, **any_shape)(scene.image)
    return np.asarray(found["x_centroid"]), np.asarray(found["y_centroid"])


def marking(scene: StarScene) -> Case:
    """Footprints into the mask."""
    detections = detect(**scene.planes, psf_stamp=scene.psf.coefficients[0], threshold=THRESHOLD)
    of_sign = int(MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE)

    def check(results) -> None:
        """Every pixel of a footprint whose score is not 0 has one plane, and no other pixel has."""
        for name, marked in results.items():
            wanted = (detections.labels > 0) & (detections.score != 0)
            np.testing.assert_array_equal((marked & of_sign) != 0, wanted, err_msg=name)

    return Case(
        name="mark_detected",
        size=f"{scene.mask.shape[0]}x{scene.mask.shape[1]} i32",
        arrays={"mask": scene.mask, "detections": detections},
        ours=mark_detected,
        moved_bytes=4 * scene.mask.nbytes,  # mask, labels and score read, mask written
        check=check,
    )


def flags(scene: StarScene) -> Case:
    """What the mask says around every star."""
    rng, side = np.random.default_rng(2), PSF_SIDE
    flagged = rng.uniform(size=scene.mask.shape) < FLAGGED
    mask = np.where(flagged, np.int32(MaskPlane.SAT), np.int32(0))

    def check(results) -> None:
        """The largest value of the box around a star's pixel says whether it has the plane."""
        near = maximum_filter(mask, size=side, mode="constant")[np.rint(scene.y).astype(int), np.rint(scene.x).astype(int)]
        for name, columns in results.items():
            np.testing.assert_array_equal(columns["saturated"], near > 0, err_msg=name)
            assert not columns["offimage"].any() and not columns["cr"].any(), name

    return Case(
        name="pixel_flags",
        size=f"{len(scene.x)} of {side}x{side} i32",
        arrays={"mask": mask, "x": scene.x, "y": scene.y},
        ours=lambda mask, x, y: pixel_flags(mask, x, y, half_size=side // 2),
        moved_bytes=len(scene.x) * (side**2 * mask.itemsize + 16 + 2 * len(FLAGGED_PLANES) + 1),
        check=check,
    )


if __name__ == "__main__":
    contest.main("kernel-detection", cases, __doc__)
