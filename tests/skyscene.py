"""Small synthetic exposures of one star field with known truth, for tests of templates and differences."""

from __future__ import annotations

import numpy as np

from nightstream.engine.values import Exposure, ExposureInfo, MaskedImage
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

SIGMA_PER_FWHM = 1 / 2.3548


def star_field(n=60, size=300, seed=1, low=3e3, high=3e5):
    """Offsets in pixels (x, y) from the field's centre and fluxes of ``n`` stars, spread over ``size`` pixels."""
    rng = np.random.default_rng(seed)
    flux = 10 ** rng.uniform(np.log10(low), np.log10(high), n)
    return rng.uniform(-size / 2, size / 2, n), rng.uniform(-size / 2, size / 2, n), flux


def add_gaussians(image, x, y, flux, sigma):
    """Add unit-sum Gaussians, sampled at pixel centres."""
    ny, nx = image.shape
    yy, xx = np.arange(ny)[:, None], np.arange(nx)[None, :]
    for x0, y0, f in zip(x, y, flux, strict=True):
        profile = np.exp(-0.5 * ((yy - y0) / sigma) ** 2) * np.exp(-0.5 * ((xx - x0) / sigma) ** 2)
        image += f / (2 * np.pi * sigma**2) * profile


def make_exposure(
    stars, *, shape=(256, 256), fwhm=4.0, sky=400.0, scale=1.0, angle=0.0, dx=0.0, dy=0.0, seed=2, visit=1, extra=(),
    njy_per_unit=None, noise=True,
) -> Exposure:  # fmt: skip
    """An exposure in electrons: Poisson noise of sources and sky, the sky subtracted.

    ``scale`` multiplies all fluxes, ``angle`` (degrees), ``dx``, ``dy`` (pixels) move the detector over the sky, ``extra``
    is a list of (x, y, flux) in pixels and electrons of this exposure.
    """
    rng = np.random.default_rng(seed)
    centre_x, centre_y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    sky_grid = Wcs.tan(150.0, 2.0, centre_x, centre_y, 0.2)
    wcs = Wcs.tan(150.0, 2.0, centre_x + dx, centre_y + dy, 0.2, angle)
    ra, dec = sky_grid.sky_from_pixel(stars[0] + centre_x, stars[1] + centre_y)
    x, y = wcs.pixel_from_sky(ra, dec)
    model = np.zeros(shape)
    add_gaussians(model, x, y, stars[2] * scale, fwhm * SIGMA_PER_FWHM)
    for x0, y0, flux in extra:
        add_gaussians(model, [x0], [y0], [flux], fwhm * SIGMA_PER_FWHM)
    variance = np.maximum(model + sky, 1)
    image = model + (rng.normal(0, 1, shape) * np.sqrt(variance) if noise else 0)
    pixels = MaskedImage(image.astype(np.float32), np.zeros(shape, np.int32), np.maximum(image + sky, 1).astype(np.float32))
    info = ExposureInfo(
        visit=visit, detector=1, camera="test", kind="science", band="r", exposure_time_s=30.0, dark_time_s=31.0,
        midpoint_mjd_tai=60000.0,
    )  # fmt: skip
    psf = PsfModel.gaussian(fwhm * SIGMA_PER_FWHM)
    return Exposure(info=info, pixels=pixels, wcs=wcs, psf=psf, njy_per_unit=njy_per_unit or 1 / scale)
