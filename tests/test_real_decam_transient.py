"""A real changing source in five DECam exposures, against a reference group of five others."""

from functools import cache

import numpy as np
import pytest
from realdata import real_data

from nightstream.engine.characterize import characterize, reference_from_stars
from nightstream.engine.config import EngineConfig
from nightstream.engine.difference import subtract
from nightstream.engine.measure import measure_dia_sources
from nightstream.engine.template import build_template
from nightstream.engine.values import ExposureInfo, MaskedImage
from nightstream.io.wcs_cards import wcs_from_header

pytestmark = pytest.mark.real

TRANSIENT = (128.8, 127.7)  # x, y, 0-based; where the frames' authors found it
CONFIG = EngineConfig()


@pytest.fixture(scope="module")
def data():
    return real_data("decam_sfft_transient") / "input_data"


@cache
def exposures(folder, group):
    """The five exposures of a group, calibrated onto the flux scale of the first of the reference group."""
    reference = None if group == "18" else reference_of(folder)
    done = []
    for number, path in enumerate(sorted(folder.glob(f"DEC-OBS{group}?.mini.fits.gz"))):
        done.append(exposure(path, number, reference))
        reference = reference or reference_from_stars(done[0].stars, done[0].exposure.njy_per_unit)
    return tuple(one.exposure for one in done)


def reference_of(folder):
    """Stars of the first exposure of the reference group."""
    first = exposure(sorted(folder.glob("DEC-OBS18?.mini.fits.gz"))[0], 0, None)
    return reference_from_stars(first.stars, first.exposure.njy_per_unit)


def exposure(path, number, reference):
    """One sky-subtracted exposure: the sky's variance is that of its own blank pixels, the stars' comes from the gain."""
    from astropy.io import fits

    header = fits.getheader(path)
    image = fits.getdata(path).astype(np.float32)
    sky_sigma = 1.4826 * np.median(np.abs(image - np.median(image)))
    variance = sky_sigma**2 + np.maximum(image, 0) / header["GAIN"]
    info = ExposureInfo(visit=number, detector=37, camera="decam", kind="science", band="i", dark_time_s=330.0,
                        exposure_time_s=330.0, midpoint_mjd_tai=58334.4, path=str(path))  # fmt: skip
    pixels = MaskedImage(image, np.zeros(image.shape, np.int32), variance.astype(np.float32))
    return characterize(pixels, info, wcs_from_header(header), reference, CONFIG.characterize)


def brightest_clean_detection(science, template):
    """x, y of the brightest positive DIASource that is neither a dipole nor the residual of a bright star."""
    result = subtract(science, template, CONFIG.difference)
    found = measure_dia_sources(result.difference, science, result.matched_template, CONFIG.measure)
    clean = ~found["is_negative"] & ~found["is_dipole"] & ~found["star_residual"]
    best = np.flatnonzero(clean)[np.argmax(found["psf_flux"][clean])]
    return found["x"][best], found["y"][best]


def on_the_source(x, y):
    return np.hypot(x - TRANSIENT[0], y - TRANSIENT[1]) < 2.5


def test_the_source_is_the_brightest_in_most_single_exposures(data):
    """In at least four of five exposures the changing source is the brightest clean detection."""
    template = build_template(list(exposures(data, "18")), CONFIG.template)
    hits = [on_the_source(*brightest_clean_detection(science, template)) for science in exposures(data, "04")]
    assert sum(hits) >= 4, hits


def test_the_source_is_the_brightest_in_the_stack(data):
    """In the coadd of the five exposures the changing source is the brightest clean detection."""
    template = build_template(list(exposures(data, "18")), CONFIG.template)
    stack = stacked(exposures(data, "04"))
    assert on_the_source(*brightest_clean_detection(stack, template))


def stacked(group):
    """The coadd of a group as one exposure."""
    from dataclasses import replace

    coadd = build_template(list(group), CONFIG.template.model_copy(update={"padding_pix": 0}))
    return replace(group[0], pixels=coadd.pixels, wcs=coadd.wcs, psf=coadd.psf, njy_per_unit=1.0)
