"""A pair of images whose difference is known: stars, galaxies and transients, with the truth behind every pixel.

Science and template share one pixel grid (no warp), differ in PSF, seeing, flux scale and depth, and are registered to
0.15 pixels. PSFs are elliptical Moffats in closed form that vary quadratically over the field. Galaxies need GalSim (the
``sim`` extra). Seeded: the same size and seed give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from scipy import ndimage

SCALE = 0.85  # science ADU per template ADU
SATURATION = 60000.0  # ADU
FULL_SIZE = 4096  # pixels, of the field that the numbers below are for
STARS, GALAXIES = 8000, 2000
TRANSIENTS = {4096: 500, 2048: 250, 1024: 125}  # denser in small fields, so that the statistics hold
STAR_FLUX = (500.0, 4e6, -0.75)  # ADU, least and most, and the slope of N(>F)
TRANSIENT_SNR = (4, 100)
FIELD, ON_GALAXY, ON_STAR = 0, 1, 2  # where a transient lies
STAMP_HALF, GALAXY_SIDE = 12, 97  # pixels
MIXING_SIGMA_PIX = 1.25  # of the Gaussian that stands for the matching kernel in the expected variance


class Camera(NamedTuple):
    """How one of the two images was taken."""

    name: str
    beta: float  # of the Moffat
    gain: float  # electrons per ADU
    read_noise: float  # electrons
    sky: float  # ADU

    @property
    def sky_noise(self) -> float:
        return np.sqrt(self.sky / self.gain)

    def variance(self, light):
        """Expected variance, ADU^2, where the expected level, sky included, is ``light``."""
        return light / self.gain + (self.read_noise / self.gain) ** 2

    def shape(self, x, y, size):
        """FWHM in pixels and both components of the reduced shear of the PSF at ``x, y`` of a field of ``size``."""
        u, v = 2.0 * x / size - 1, 2.0 * y / size - 1
        if self is SCIENCE:
            return 4.25 + 0.20 * u + 0.15 * v + 0.15 * (u * u + v * v), 0.03 * u, 0.03 * v - 0.01
        return 3.2 + 0.10 * v - 0.08 * u + 0.05 * u * v, 0.015 * v, -0.01 * u


SCIENCE = Camera("science", beta=3.2, gain=1.5, read_noise=6.0, sky=800.0)
TEMPLATE = Camera("template", beta=3.6, gain=15.0, read_noise=6.0 * 10**0.5, sky=700.0)  # the mean of 10 exposures


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The two images, sky left in, and their truth; planes are (size, size), float32 and in ADU unless stated."""

    science: np.ndarray
    template: np.ndarray
    static_science: np.ndarray  # what is expected of everything but the transients, sky included
    static_template: np.ndarray
    sources: np.ndarray  # the same without sky, on the science image
    variance: np.ndarray  # ADU^2, expected of the difference, the template's share included
    saturated: np.ndarray  # bool, in either image
    stars: np.ndarray  # (n, 3): x, y, flux
    transients: np.ndarray  # (n, 5): x, y, flux, S/N, where it lies

    @property
    def size(self) -> int:
        return self.science.shape[0]

    def save(self, path: Path) -> None:
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Sample:
        with np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def write_images(self, folder: Path) -> tuple[Path, Path]:
        """Write both images as FITS and return their paths."""
        paths = folder / f"{self.size}_science.fits", folder / f"{self.size}_template.fits"
        for path, image in zip(paths, (self.science, self.template), strict=True):
            fits.writeto(path, image, overwrite=True)
        return paths


def registration(x, y, size):
    """Where a source at ``x, y`` of the science image lies on the template, less its place."""
    u, v = 2.0 * x / size - 1, 2.0 * y / size - 1
    return 0.08 * u - 0.05 * v * v, 0.06 * v + 0.04 * u * v


def psf_stamp(x, y, size, camera: Camera, half: int, centre=None):
    """Return ``ix, iy`` and the PSF of (x, y) on the pixels up to ``half`` from them; its flux, to infinity, is 1.

    ``centre`` is where it is drawn, by default at (x, y); ``ix, iy`` is the pixel nearest to that.
    """
    xc, yc = centre or (x, y)
    ix, iy = int(round(xc)), int(round(yc))
    fwhm, g1, g2 = camera.shape(x, y, size)
    b = camera.beta
    a = fwhm / (2 * np.sqrt(2 ** (1 / b) - 1))
    offset = np.arange(-half, half + 1)
    dx, dy = (offset + ix - xc)[None, :], (offset + iy - yc)[:, None]
    k = 1 / np.sqrt(1 - g1 * g1 - g2 * g2)
    xs, ys = k * ((1 - g1) * dx - g2 * dy), k * (-g2 * dx + (1 + g1) * dy)
    return ix, iy, (b - 1) / (np.pi * a * a) * (1 + (xs * xs + ys * ys) / (a * a)) ** (-b)


def make_sample(size: int, seed: int) -> Sample:
    """Draw stars and galaxies, place transients with known S/N, and add the noise."""
    rng = np.random.default_rng(seed + size)
    stars, galaxies = _draw_catalogues(rng, size)
    skies = _skies(size)
    static = _draw_static(stars, galaxies, size)
    light = [image + sky for image, sky in zip(static, skies, strict=True)]
    saturated = (light[0] >= SATURATION) | (light[1] >= SATURATION)
    mixing = SCALE**2 / (4 * np.pi * MIXING_SIGMA_PIX**2)
    shared = ndimage.gaussian_filter(TEMPLATE.variance(light[1]), MIXING_SIGMA_PIX / np.sqrt(2))
    variance = SCIENCE.variance(light[0]) + mixing * shared
    transients = _place_transients(rng, stars, galaxies, saturated, variance, size)
    changed = np.zeros((size, size))
    for x, y, flux in transients[:, :3]:
        _add(changed, *psf_stamp(x, y, size, SCIENCE, 40), flux)
    science = _observe(rng, static[0] + changed + skies[0], SCIENCE)
    template = _observe(rng, light[1], TEMPLATE)
    return Sample(
        science=science, template=template, static_science=light[0].astype(np.float32),
        static_template=light[1].astype(np.float32), sources=static[0].astype(np.float32),
        variance=(variance + changed / SCIENCE.gain).astype(np.float32), saturated=saturated, stars=stars, transients=transients,
    )  # fmt: skip


def _draw_catalogues(rng, size):
    """Stars (n, 3): x, y, flux; galaxies (n, 6): x, y, flux, half-light radius, shear and its angle. Science ADU."""
    area = (size / FULL_SIZE) ** 2
    n_stars, n_galaxies = round(STARS * area), round(GALAXIES * area)
    x, y = rng.uniform(-5, size + 5, n_stars), rng.uniform(-5, size + 5, n_stars)
    low, high, slope = STAR_FLUX
    flux = (low**slope + rng.uniform(size=n_stars) * (high**slope - low**slope)) ** (1 / slope)
    gx, gy = rng.uniform(0, size, n_galaxies), rng.uniform(0, size, n_galaxies)
    galaxy_flux = 1500.0 * rng.pareto(1.2, n_galaxies).clip(0, 60) + 1500.0
    radius = rng.uniform(2.0, 7.0, n_galaxies)
    shear, angle = rng.uniform(0, 0.5, n_galaxies), rng.uniform(0, np.pi, n_galaxies)
    return np.c_[x, y, flux], np.c_[gx, gy, galaxy_flux, radius, shear, angle]


def _skies(size):
    """A gradient and some curvature in the science image, a gradient in the template."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    science = (SCIENCE.sky * (1 + 0.02 * (x / size - 0.5) + 0.015 * (y / size - 0.5) ** 2)).astype(np.float64)
    return science, np.full((size, size), TEMPLATE.sky) * (1 - 0.01 * (y / size - 0.5))


def _draw_static(stars, galaxies, size):
    """What does not change, without noise and sky, as both cameras see it, each in its own ADU."""
    images = np.zeros((size, size)), np.zeros((size, size))
    for x, y, flux in stars:
        for image, camera in zip(images, (SCIENCE, TEMPLATE), strict=True):
            seen, centre = _seen(x, y, flux, camera, size)
            _add(image, *psf_stamp(x, y, size, camera, _reach(seen, camera), centre), seen)
    for x, y, flux, radius, shear, angle in galaxies:
        for image, camera in zip(images, (SCIENCE, TEMPLATE), strict=True):
            seen, centre = _seen(x, y, flux, camera, size)
            _add(image, *_galaxy_stamp(x, y, centre, radius, shear, angle, camera, size), seen)
    return images


def _seen(x, y, flux, camera, size):
    """A source's flux and place on the image of ``camera``."""
    if camera is SCIENCE:
        return flux, (x, y)
    dx, dy = registration(x, y, size)
    return flux / SCALE, (x + dx, y + dy)


def _galaxy_stamp(x, y, centre, radius, shear, angle, camera, size):
    import galsim

    galaxy = galsim.Exponential(half_light_radius=radius).shear(g=shear, beta=angle * galsim.radians)
    fwhm, g1, g2 = camera.shape(x, y, size)
    psf = galsim.Moffat(beta=camera.beta, fwhm=fwhm).shear(g1=g1, g2=g2)
    ix, iy = (int(round(c)) for c in centre)
    offset = centre[0] - ix, centre[1] - iy
    drawn = galsim.Convolve(galaxy, psf).drawImage(nx=GALAXY_SIDE, ny=GALAXY_SIDE, scale=1.0, method="no_pixel", offset=offset)
    return ix, iy, drawn.array


def _add(image, ix, iy, stamp, flux) -> None:
    half = stamp.shape[0] // 2
    ny, nx = image.shape
    x0, x1, y0, y1 = max(ix - half, 0), min(ix + half + 1, nx), max(iy - half, 0), min(iy + half + 1, ny)
    if x1 > x0 and y1 > y0:
        image[y0:y1, x0:x1] += flux * stamp[y0 - iy + half : y1 - iy + half, x0 - ix + half : x1 - ix + half]


def _reach(flux, camera: Camera) -> int:
    """Pixels from a star at which its wing has fallen to 0.02 of the sky's noise."""
    b = camera.beta
    a = 4.5 / (2 * np.sqrt(2 ** (1 / b) - 1))
    radius = a * max((flux * (b - 1) / (np.pi * a * a) / (0.02 * camera.sky_noise)), 1.0) ** (1 / (2 * b))
    return int(np.clip(radius, 12, 250))


def _place_transients(rng, stars, galaxies, saturated, variance, size):
    """(n, 5): x, y, flux, S/N, where it lies. A quarter near galaxies, a tenth on stars, 20 pixels apart, S/N
    log-uniform; background and own photons count."""
    number = TRANSIENTS.get(size, max(20, int(TRANSIENTS[FULL_SIZE] * size / FULL_SIZE)))
    forbidden = ndimage.binary_dilation(saturated, iterations=20)
    hosts = np.flatnonzero(galaxies[:, 2] > 3000)
    hidden = np.flatnonzero((stars[:, 2] > 3e3) & (stars[:, 2] < 1e5))
    rows: list[tuple] = []
    for _ in range(100_000):
        if len(rows) == number:
            break
        x, y, kind = _transient_position(rng, stars, galaxies, hosts, hidden, size)
        if not (40 < x < size - 40 and 40 < y < size - 40) or forbidden[int(round(y)), int(round(x))]:
            continue
        if rows and np.min(np.hypot(np.array(rows)[:, 0] - x, np.array(rows)[:, 1] - y)) < 20:
            continue
        ix, iy, stamp = psf_stamp(x, y, size, SCIENCE, STAMP_HALF)
        beneath = variance[stamp_box(ix, iy)]
        snr = 10 ** rng.uniform(np.log10(TRANSIENT_SNR[0]), np.log10(TRANSIENT_SNR[1]))
        flux = snr / np.sqrt(np.sum(stamp * stamp / beneath))
        for _ in range(5):
            flux = snr / np.sqrt(np.sum(stamp * stamp / (beneath + flux * stamp / SCIENCE.gain)))
        rows.append((x, y, flux, snr, kind))
    return np.array(rows)


def stamp_box(ix, iy):
    """The pixels of a stamp of a transient around (ix, iy)."""
    return np.s_[iy - STAMP_HALF : iy + STAMP_HALF + 1, ix - STAMP_HALF : ix + STAMP_HALF + 1]


def _transient_position(rng, stars, galaxies, hosts, hidden, size):
    where = rng.uniform()
    if where < 0.25:
        i = rng.choice(hosts)
        return galaxies[i, 0] + rng.normal() * 2, galaxies[i, 1] + rng.normal() * 2, ON_GALAXY
    if where < 0.35:
        i = rng.choice(hidden)
        return stars[i, 0] + rng.normal() * 0.3, stars[i, 1] + rng.normal() * 0.3, ON_STAR
    return *rng.uniform(40, size - 40, 2), FIELD


def _observe(rng, light, camera: Camera):
    electrons = rng.poisson(light * camera.gain) / camera.gain + rng.normal(0, camera.read_noise / camera.gain, light.shape)
    return np.minimum(electrons, SATURATION).astype(np.float32)
