"""Resampling of three planes and world coordinates, beside SciPy, reproject and astropy.

    python perf/kernel_warp.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-warp-cpu]

At most 2048 pixels a side, a quarter of a detector, and 1024 beside reproject, which needs seconds. SciPy gets the position
of every pixel; its mask is the nearest pixel's, its variance is interpolated. reproject makes the positions as well, and an
image alone. The scene is a sum of plane waves, known at every position. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import contest
import numpy as np
import scipy.ndimage
from astropy.io import fits
from astropy.wcs import WCS
from contest import DIRECT, OURS, Case

from nightstream.io.wcs_cards import wcs_to_text
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import array_module, scipy_module
from nightstream.kernels.warp import lanczos_weights, warp, warp_grid
from nightstream.kernels.wcs import Wcs

ORDER, STEP = 3, 16  # lobes; pixels between nodes of the grid
LARGEST_SIDE, PEER_SIDE = 2048, 1024  # pixels; the second where reproject takes part
POSITIONS = 10**6  # at most, and one a pixel
WAVES = ((0.021, 0.013), (-0.034, 0.052), (0.06, 0.045))  # cycles a pixel along x, y; unit amplitude
FLAGGED = 1e-3  # of all pixels
BENT_PIX = 3.0  # by the distortion, at half a side from the centre
SKY_DEG = 1e-9  # to which positions agree with astropy's
PIXEL = 1e-7  # to which they come back; that is 6e-12 degrees


def cases(side: int) -> Iterator[Case]:
    """A detector beside a cubic spline, a part of one from WCS to planes, and positions to the sky and back."""
    yield from_grid(min(side, LARGEST_SIDE))
    yield from_wcs(min(side, PEER_SIDE))
    yield positions(side)


def distorted(side: int, angle_deg: float, shift: float) -> Wcs:
    """A TAN-SIP of 0.2 arcsec pixels about the middle of the detector."""
    middle = side / 2
    square, cubic = BENT_PIX / middle**2, BENT_PIX / middle**3
    bends = ((2, 0, 0, square), (1, 2, 0, cubic)), ((0, 2, 0, -square), (2, 1, 0, cubic))
    tan = Wcs.tan(53.1, -27.8, middle + shift, middle - shift, 0.2, angle_deg)
    return Wcs(tan.crval, tan.crpix, tan.cd, "SIP", bends)


def waves(x, y) -> np.ndarray:
    """The scene at positions in pixels of the source."""
    return sum(np.cos(2 * np.pi * (u * x + v * y)) for u, v in WAVES)


def planes(side: int) -> dict[str, np.ndarray]:
    """The scene, a few flagged pixels, and variance 1."""
    y, x = np.indices((side, side), np.float64)
    flagged = np.random.default_rng(1).uniform(size=x.shape) < FLAGGED
    mask = np.where(flagged, np.int32(MaskPlane.CR), np.int32(0))
    return {"image": waves(x, y).astype(np.float32), "mask": mask, "variance": np.ones(x.shape, np.float32)}


def kernel_error() -> float:
    """The most that Lanczos interpolation can be wrong by in the scene: what its weights make of each wave, at any phase."""
    phase = np.linspace(0, 1, 65)
    taps = np.arange(1 - ORDER, ORDER + 1)
    gains = [
        [(lanczos_weights(phase, ORDER) * np.exp(2j * np.pi * f * (taps - phase[:, None]))).sum(axis=1) for f in wave]
        for wave in WAVES
    ]
    return sum(np.abs(along[:, None] * down - 1).max() for along, down in gains)


def from_grid(side: int) -> Case:
    """Positions given: as a grid to ours, of every pixel to SciPy's cubic spline, prefilter included."""
    maps = warp_grid(distorted(side, 1.0, 2.3), distorted(side, 0.0, 0.0), (side, side), STEP)
    arrays = planes(side)
    x, y = every_pixel(maps, side)
    inside = inner(x, y, side)
    scene, error = waves(x, y), kernel_error()

    def check(results) -> None:
        """Ours is the scene but for its kernel and 1e-5 of table and float32; a cubic spline is closer to it."""
        np.testing.assert_allclose(results[OURS][0][inside], scene[inside], rtol=0, atol=error + 1e-5)
        np.testing.assert_allclose(results[DIRECT][0][inside], scene[inside], rtol=0, atol=error + 1e-5)

    return Case(
        name="warp",
        size=f"{side}x{side} f32 lanczos{ORDER}",
        arrays=arrays | {"map_x": maps[0], "map_y": maps[1], "places": np.stack([y, x]).astype(np.float32)},
        ours=lambda places, **given: warp(**given, step=STEP, shape=(side, side), order=ORDER, conserve_flux=False),
        moved_bytes=2 * sum(plane.nbytes for plane in arrays.values()),
        operations=warp_operations(side),
        direct=resample_plainly,
        check=check,
        tolerance=1e-6,
    )


def resample_plainly(xp, image, mask, variance, places, **_):
    """A cubic spline through the image, the nearest pixel's mask, and lines between variances."""
    resample = scipy_module(xp, "ndimage").map_coordinates
    return tuple(resample(plane, places, order=order) for plane, order in ((image, 3), (mask, 0), (variance, 1)))


def every_pixel(maps, side: int):
    """The grid's positions at every output pixel."""
    row, column = np.indices((side, side))
    return tuple(scipy.ndimage.map_coordinates(grid, (row / STEP, column / STEP), order=1) for grid in maps)


def inner(x, y, side: int) -> np.ndarray:
    """Which pixels have sources so far from the border that a spline knows nothing of it."""
    margin = 16
    return (x > margin) & (x < side - margin) & (y > margin) & (y < side - margin)


def from_wcs(side: int) -> Case:
    """From two WCSs: ours evaluates them on its grid, reproject and astropy at every pixel; reproject has a cubic spline."""
    wcs_out, wcs_in = distorted(side, 1.0, 2.3), distorted(side, 0.0, 0.0)
    arrays, shape = planes(side), (side, side)
    x, y = warp_grid(wcs_out, wcs_in, shape, 1)
    x, y = x[:side, :side], y[:side, :side]
    inside, scene, error = inner(x, y, side), waves(x, y), kernel_error()
    grid = every_pixel(warp_grid(wcs_out, wcs_in, shape, STEP), side)
    slope = 2 * np.pi * np.abs(WAVES).sum()

    def of_reproject():
        from reproject import reproject_interp

        return reproject_interp((arrays["image"], astropy_wcs(wcs_in)), astropy_wcs(wcs_out), shape, order="bicubic")[0]

    def check(results) -> None:
        """As above, and straight lines between the grid's nodes are off by so many pixels, times the scene's slope."""
        off = max(np.abs(there - here).max() for there, here in zip(grid, (x, y), strict=True))
        for name, found in results.items():
            image = found[0] if name == OURS else found
            np.testing.assert_allclose(image[inside], scene[inside], rtol=0, atol=error + slope * off + 1e-5, err_msg=name)

    return Case(
        name="warp_grid, warp",
        size=f"{side}x{side} f32 lanczos{ORDER}",
        arrays=arrays,
        ours=lambda **arrays: warp_between(wcs_out, wcs_in, **arrays),
        moved_bytes=2 * sum(plane.nbytes for plane in arrays.values()),
        operations=warp_operations(side),
        peers=contest.installed({"reproject": of_reproject}),
        check=check,
        tolerance=1e-5,
    )


def warp_between(wcs_out: Wcs, wcs_in: Wcs, image, mask, variance):
    """Ours, grid included."""
    maps = warp_grid(wcs_out, wcs_in, image.shape, STEP, xp=array_module(image))
    return warp(image, mask, variance, *maps, STEP, image.shape, order=ORDER, conserve_flux=False)


def warp_operations(side: int) -> float:
    """A weight for each tap, and with it a product and a sum for image and for variance."""
    return 6.0 * side**2 * (2 * ORDER) ** 2


def astropy_wcs(wcs: Wcs) -> WCS:
    return WCS(fits.Header.fromstring(wcs_to_text(wcs), sep="\n"))


def positions(side: int) -> Case:
    """Pixels to the sky and back through a SIP; astropy's inverse stops at a change of 1e-9 pixels, ours at 1e-10."""
    wcs, count = distorted(side, 1.0, 2.3), min(side**2, POSITIONS)
    x, y = np.random.default_rng(1).uniform(0, side, (2, count))
    other = astropy_wcs(wcs)

    def there_and_back(x, y):
        sky = wcs.sky_from_pixel(x, y)
        return *sky, *wcs.pixel_from_sky(*sky)

    def of_astropy():
        sky = other.all_pix2world(x, y, 0)
        return *sky, *other.all_world2pix(*sky, 0, tolerance=1e-9)

    def check(results) -> None:
        """The same sky, and back where they came from."""
        ra, dec = results[OURS][:2]
        for name, found in results.items():
            np.testing.assert_allclose(found[:2], (ra, dec), rtol=0, atol=SKY_DEG, err_msg=name)
            np.testing.assert_allclose(found[2:], (x, y), rtol=0, atol=PIXEL, err_msg=name)

    return Case(
        name="Wcs, both ways",
        size=f"{count} f64 SIP",
        arrays={"x": x, "y": y},
        ours=there_and_back,
        moved_bytes=8 * 8 * count,  # two numbers in and two out, either way
        peers=contest.installed({"astropy": of_astropy}),
        check=check,
        tolerance=1e-12,  # a few roundings of 360 degrees, 1e-13, are 2e-9 pixels of 4096
    )


if __name__ == "__main__":
    contest.main("kernel-warp", cases, __doc__)
