"""Registration of whole fields: 4k x 4k pixels of 0.2 arcsec, a header that is off, and a distortion it does not know."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from test_wcs import make

from nightstream.engine.characterize import Registration, register
from nightstream.engine.config import CharacterizeConfig
from nightstream.engine.values import ExposureInfo
from nightstream.kernels.distortion import Distortion
from nightstream.kernels.wcs import Wcs

SIZE, SCALE_ARCSEC, PSF_SIGMA_PIX, LIMIT_MAS = 4000, 0.2, 1.7, 15.0
TEMPLATE_DEPTH = 3.0  # S/N of a star in the template over that in a visit: the coadd of ten
INFO = ExposureInfo(visit=7, detector=94, camera="test", kind="science", band="r", exposure_time_s=30.0, dark_time_s=30.0,
                    midpoint_mjd_tai=61000.0)  # fmt: skip
# On a detector whose corner is at (1, 1): 1.5 pixels of radial distortion at the corner, and a little of other kinds.
OPTICS = Distortion((1999.5, 1999.5), (2000.0, 2000.0), 3, (
    ((3, 0, 0, 0.53), (1, 2, 0, 0.53), (2, 0, 0, 0.20), (1, 1, 0, -0.10)),
    ((0, 3, 0, 0.53), (2, 1, 0, 0.53), (0, 2, 0, -0.15)),
))  # fmt: skip


@dataclass(frozen=True)
class Field:
    """What was seen, what is known, and what is true."""

    stars: dict
    reference: dict
    header: Wcs
    truth: Wcs
    snr: np.ndarray  # of the stars of the sky, which come first in both tables

    def register(self, **changes) -> Registration:
        return register(self.stars, self.header, self.reference, INFO, CharacterizeConfig(**changes))

    def rms_mas(self, found: Wcs) -> float:
        """Return the RMS distance between a WCS and the truth over the whole detector, per two axes."""
        x, y = (c.ravel() for c in np.meshgrid(*[np.linspace(0, SIZE - 1, 41)] * 2))
        x_back, y_back = self.truth.pixel_from_sky(*found.sky_from_pixel(x, y))
        return 1000 * SCALE_ARCSEC * float(np.sqrt(((x_back - x) ** 2 + (y_back - y) ** 2).mean()))


def headers():
    """A plain header, one whose reference point is far off the detector, and two that know the focal plane's distortion."""
    plain = Wcs.tan(150.0, 2.0, 2000.0, 2000.0, SCALE_ARCSEC, angle_deg=30.0)
    return {
        "TAN": plain,
        "TAN far": replace(plain, crpix=(-21000.0, 14000.0)),
        "SIP": replace(make("SIP"), crpix=(-3000.0, 5000.0)),
        "TPV": replace(make("TPV"), crpix=(-3000.0, 5000.0)),
    }


@cache
def make_field(kind="TAN", n=1000, roll_deg=0.3, offset_pix=100.0, spurious=0.3, seed=1, optics=OPTICS) -> Field:
    """Stars of S/N 10 and more in a visit and a template three times as deep; in each some that the other does not have."""
    rng = np.random.default_rng(seed)
    header = headers()[kind]
    turned = header.with_affine(roll_about_the_middle(roll_deg, offset_pix))
    truth = turned.with_distortion(optics)
    x, y = rng.uniform(0, SIZE - 1, (2, n))
    snr = 10.0 * rng.uniform(0, 1, n) ** (-1 / 1.2)  # counts grow by 10^(0.5 mag)
    # Of a Gaussian PSF on a background: King 1983, PASP 95, 163
    err = PSF_SIGMA_PIX * np.sqrt(2) / snr
    ra, dec = truth.sky_from_pixel(x + err / TEMPLATE_DEPTH * rng.normal(size=n), y + err / TEMPLATE_DEPTH * rng.normal(size=n))
    m = round(spurious * n)
    other_x, other_y = rng.uniform(0, SIZE - 1, (2, m))
    other_ra, other_dec = truth.sky_from_pixel(*rng.uniform(0, SIZE - 1, (2, m)))
    every_snr, every_err = np.r_[snr, rng.choice(snr, m)], np.r_[err, rng.choice(err, m)]
    stars = {
        "x": np.r_[x + err * rng.normal(size=n), other_x],
        "y": np.r_[y + err * rng.normal(size=n), other_y],
        "x_err": every_err,
        "y_err": every_err,
        "psf_flux": every_snr * 100.0,
        "psf_flux_err": np.full(n + m, 100.0),
    }
    flux = 300.0 * np.r_[snr * rng.normal(1.0, 0.02, n), rng.choice(snr, m)]
    return Field(stars, {"ra": np.r_[ra, other_ra], "dec": np.r_[dec, other_dec], "flux": flux}, header, truth, snr)


def roll_about_the_middle(angle_deg, offset_pix):
    """Return the affine map from true pixels to those of the header."""
    c, s, mid = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg)), (SIZE - 1) / 2
    return (c, -s, mid - c * mid + s * mid + offset_pix), (s, c, mid - s * mid - c * mid - 0.6 * offset_pix)


def expected_mas(field: Field, order: int) -> float:
    """Return the RMS error over the detector of a weighted fit: its number of terms shared out over the sum of weights."""
    err2 = 2 * (PSF_SIGMA_PIX / field.snr) ** 2 * (1 + TEMPLATE_DEPTH**-2)
    terms = (order + 1) * (order + 2) / 2
    return 1000 * SCALE_ARCSEC * float(np.sqrt(2 * terms / (1 / (err2 + 0.02**2)).sum()))


@pytest.mark.parametrize("kind", headers())
def test_the_whole_detector_is_right_to_15_mas(kind):
    """1000 stars, a third spurious, roll, offset and distortion: 1.5 mas are expected, and affine maps leave 40."""
    field = make_field(kind)
    found = field.register()
    assert found.distortion_order == 3 and found.n_matched > 0.99 * len(field.snr)
    # the error of an RMS of 20 coefficients is a sixth of it, and the corners weigh more than the mean star
    assert field.rms_mas(found.wcs) < 2 * expected_mas(field, 3) < LIMIT_MAS
    assert field.rms_mas(field.register(distortion_order=1).wcs) > 2 * LIMIT_MAS


@pytest.mark.parametrize("kind", headers())
def test_science_and_template_agree_to_15_mas(kind):
    """Bright stars (S/N 50 and more) of the visit lie on the sky where the template has them, each to 0.05 pixel or better."""
    field = make_field(kind)
    bright = np.flatnonzero(field.snr > 50)
    sky = (field.reference[name][bright] for name in ("ra", "dec"))
    dx, dy = field.register().wcs.offset_to_sky(field.stars["x"][bright], field.stars["y"][bright], *sky)
    assert len(bright) > 100
    assert 1000 * SCALE_ARCSEC * np.sqrt((dx**2 + dy**2).mean()) < LIMIT_MAS


@pytest.mark.parametrize("roll", [90.0, 180.0, 270.0, 123.4])
@pytest.mark.parametrize("kind", ["TAN far", "SIP", "TPV"])
def test_a_detector_turned_by_any_angle_is_registered(kind, roll):
    """A header that does not know how the camera was turned is enough, when the configuration says so."""
    field = make_field(kind, n=500, roll_deg=roll)
    found = field.register(max_rotation_deg=180.0)
    assert field.rms_mas(found.wcs) < 2 * expected_mas(field, 3) < LIMIT_MAS


def test_ten_stars_get_the_affine_map():
    """Ten stars do not bear more: what comes out is what order 1 gives, and a TAN stays a TAN."""
    field = make_field(n=10, spurious=0.0)
    found, affine = field.register(), field.register(distortion_order=1)
    assert found == affine
    assert found.distortion_order == 1 and found.wcs.kind == "TAN"


def test_noise_is_not_fitted():
    """Without a distortion order 1 is kept; a gain of 2 standard errors is by chance in at most 1 of 20 fields and order."""
    none = replace(OPTICS, terms=((), ()))
    orders = [make_field(n=300, seed=seed, optics=none).register().distortion_order for seed in range(20)]
    assert orders.count(1) >= 16
    field = make_field(n=300, seed=orders.index(1), optics=none)
    assert field.rms_mas(field.register().wcs) < 2 * expected_mas(field, 1)


def test_a_catalogue_of_half_the_detector_is_not_extrapolated():
    """With stars on one half alone the other is no worse than with an affine map."""
    field = make_field(n=300)
    x, _ = field.truth.pixel_from_sky(field.reference["ra"], field.reference["dec"])
    half = replace(field, reference={name: column[x < SIZE / 2] for name, column in field.reference.items()})
    found, affine = half.register(), half.register(distortion_order=1)
    assert field.rms_mas(found.wcs) <= field.rms_mas(affine.wcs)


def test_nan_and_doubles_do_no_harm():
    """Rows without a position and stars listed twice leave the WCS as good as it was."""
    field = make_field()
    rng = np.random.default_rng(3)
    for table in (field.stars, field.reference):
        again = rng.integers(0, len(field.snr), 100)
        broken = {name: np.r_[column, column[again], np.full(50, np.nan)] for name, column in table.items()}
        field = replace(field, **{"stars" if table is field.stars else "reference": broken})
    assert field.rms_mas(field.register().wcs) < 2 * expected_mas(field, 3)
