"""The WCS agrees with astropy.wcs, inverts itself, and follows its pixels through affine maps."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from realdata import real_data

from nightstream.errors import InputError
from nightstream.kernels.distortion import Distortion
from nightstream.kernels.polynomial import evaluate
from nightstream.kernels.wcs import Wcs

SIP_TERMS = (
    ((2, 0, 0, 2.1e-6), (1, 1, 0, -3.0e-6), (0, 3, 0, 4.0e-10)),
    ((0, 2, 0, -1.7e-6), (2, 0, 0, 2.2e-6), (2, 1, 0, -6.0e-10)),
)
TPV_TERMS = (
    ((0, 0, 0, 1e-4), (1, 0, 0, 1.001), (0, 1, 0, 2e-3), (0, 0, 1, 1e-3), (2, 0, 0, 3e-3), (1, 2, 0, -2e-2)),
    ((0, 1, 0, 0.999), (1, 1, 0, -2e-3), (0, 3, 0, 3e-2), (0, 0, 3, 1e-2)),
)
TPV_INDEX = (
    ({0: 1e-4, 1: 1.001, 2: 2e-3, 3: 1e-3, 4: 3e-3, 9: -2e-2}),
    ({1: 0.999, 5: -2e-3, 7: 3e-2, 11: 1e-2}),
)


def make(kind, ra=150.0, dec=2.0, lonpole=180.0):
    """Return a WCS of 0.26 arcsec pixels, rotated by 30 degrees."""
    plain = replace(Wcs.tan(ra, dec, 1023.5, 2047.25, 0.2637, angle_deg=30.0), lonpole=lonpole)
    terms = {"TAN": (), "SIP": SIP_TERMS, "TPV": TPV_TERMS}[kind]
    return replace(plain, kind=kind, distortion=terms)


def oracle(wcs):
    """Return the astropy.wcs of the same cards, written here by hand."""
    header = fits.Header()
    code = {"TAN": "TAN", "SIP": "TAN-SIP", "TPV": "TPV"}[wcs.kind]
    header["CTYPE1"], header["CTYPE2"] = "RA---" + code, "DEC--" + code
    for axis in (0, 1):
        header[f"CRVAL{axis + 1}"], header[f"CRPIX{axis + 1}"] = wcs.crval[axis], wcs.crpix[axis] + 1.0
        header[f"CD{axis + 1}_1"], header[f"CD{axis + 1}_2"] = wcs.cd[axis]
    header["LONPOLE"] = wcs.lonpole
    if wcs.kind == "SIP":
        header["A_ORDER"], header["B_ORDER"] = 3, 3
        for letter, terms in zip("AB", SIP_TERMS, strict=True):
            for p, q, _, c in terms:
                header[f"{letter}_{p}_{q}"] = c
    if wcs.kind == "TPV":
        for axis, coefficients in enumerate(TPV_INDEX, start=1):
            for m, c in coefficients.items():
                header[f"PV{axis}_{m}"] = c
    return WCS(header)


def grid():
    """Return pixel positions over a 2k x 4k detector and a little beyond."""
    return (a.ravel() for a in np.meshgrid(np.linspace(-50, 2100, 23), np.linspace(-50, 4150, 31)))


def separation_pix(ra, dec, other_ra, other_dec, wcs):
    """Return the distance of two sets of sky positions in pixels."""
    along = (np.mod(ra - other_ra + 180.0, 360.0) - 180.0) * np.cos(np.radians(dec))
    return np.hypot(along, dec - other_dec) * 3600.0 / wcs.pixel_scale_arcsec


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("ra, dec", [(150.0, 2.0), (0.01, -45.0), (359.99, 89.9), (37.0, -90.0), (12.0, 90.0)])
@pytest.mark.parametrize("lonpole", [180.0, 0.0, 63.0])
def test_sky_positions_agree_with_astropy(kind, ra, dec, lonpole):
    """Pixels land on the sky where astropy.wcs puts them, at the poles and across ra = 0 too."""
    wcs = make(kind, ra, dec, lonpole)
    x, y = grid()
    expected = oracle(wcs).all_pix2world(x, y, 0)
    found = wcs.sky_from_pixel(x, y)
    assert found[0].min() >= 0.0 and found[0].max() < 360.0
    assert separation_pix(*found, *expected, wcs).max() < 1e-6


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("ra, dec", [(150.0, 2.0), (0.01, -45.0), (359.99, 89.9), (37.0, -90.0)])
def test_pixels_agree_with_astropy(kind, ra, dec):
    """Astropy's sky positions come back to the pixel they were made from."""
    wcs = make(kind, ra, dec)
    x, y = grid()
    found = wcs.pixel_from_sky(*oracle(wcs).all_pix2world(x, y, 0))
    np.testing.assert_allclose(found, (x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
def test_pixel_to_sky_and_back_is_the_identity(kind):
    """The inverse is good to 1e-9 pixel plus the rounding of ra, 360 deg * eps = 1e-9 pixel."""
    x, y = grid()
    back = make(kind).pixel_from_sky(*make(kind).sky_from_pixel(x, y))
    np.testing.assert_allclose(back, (x, y), rtol=0, atol=2e-9)


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
def test_affine_map_moves_the_pixels_and_not_the_sky(kind):
    """A pixel of the new frame has the sky position of the old pixel it came from."""
    matrix = np.array([[0.98, 0.17, -40.5], [-0.2, 1.01, 12.25]])
    x, y = grid()
    old_x, old_y = matrix @ np.stack([x, y, np.ones_like(x)])
    found = make(kind).with_affine(matrix).sky_from_pixel(x, y)
    assert separation_pix(*found, *make(kind).sky_from_pixel(old_x, old_y), make(kind)).max() < 1e-8


DISTORTION = Distortion((1000.0, 2000.0), (1024.0, 2048.0), 3, (
    ((0, 0, 0, 0.3), (1, 0, 0, -0.4), (2, 0, 0, 0.5), (3, 0, 0, 0.8), (1, 2, 0, 0.6)),
    ((0, 1, 0, 0.2), (1, 1, 0, -0.3), (0, 3, 0, 0.7), (2, 1, 0, 0.6)),
))  # fmt: skip


def offsets(x, y):
    """Return what DISTORTION adds, in pixels."""
    return [evaluate(terms, x, y, np) for terms in DISTORTION.terms_about(0.0, 0.0)]


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("crpix", [(1023.5, 2047.25), (-21000.0, 14000.0)])
def test_distortion_is_added_to_the_pixels(kind, crpix):
    """A pixel's new sky position is as many pixels from its old one as the polynomials say, wherever the reference point is."""
    old = replace(make(kind), crpix=crpix)
    x, y = grid()
    found = old.offset_to_sky(x, y, *old.with_distortion(DISTORTION).sky_from_pixel(x, y))
    # ra in degrees has eps * 360 deg = 1e-9 pixel
    np.testing.assert_allclose(found, offsets(x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("crpix", [(1023.5, 2047.25), (-21000.0, 14000.0)])
def test_distorted_pixels_come_back(target, kind, crpix):
    """The inverse of a corrected WCS is as good as that of any other."""
    wcs = replace(make(kind), crpix=crpix).with_distortion(DISTORTION)
    x, y = map(target.array, grid())
    back = wcs.pixel_from_sky(*wcs.sky_from_pixel(x, y))
    np.testing.assert_allclose([target.host(c) for c in back], list(grid()), rtol=0, atol=5e-9)


def test_the_pixel_scale_is_that_of_the_detector():
    """A cubic fitted far from the reference point does not change the scale by more than on the detector: 1 pixel in 1000."""
    wcs = replace(make("TAN"), crpix=(-21000.0, 14000.0))
    assert wcs.with_distortion(DISTORTION).pixel_scale_arcsec == pytest.approx(wcs.pixel_scale_arcsec, rel=1e-3)


def test_affine_distortion_leaves_a_tan():
    """Constant and linear terms go into CRPIX and CD."""
    terms = tuple(tuple(t for t in one if t[0] + t[1] < 2) for one in DISTORTION.terms)
    wcs = make("TAN").with_distortion(replace(DISTORTION, order=1, terms=terms))
    assert wcs.kind == "TAN"
    assert make("TAN").with_distortion(replace(DISTORTION, order=0, terms=((), ()))).crpix == make("TAN").crpix


def test_offset_to_sky_is_nan_where_there_is_none():
    """NaN and the far hemisphere have no offset."""
    dx, dy = make("SIP").offset_to_sky([5.0, np.nan], [5.0, 1.0], [330.0, 150.0], [-2.0, 2.0])
    assert np.isnan([dx, dy]).all()


def test_orientation_of_tan():
    """North is up and east left with flip; angle_deg turns +y from north through east."""
    plain = Wcs.tan(10.0, 0.0, 0.0, 0.0, 1.0)
    ra, dec = plain.sky_from_pixel([-100.0, 0.0], [0.0, 100.0])
    assert ra[0] > 10.0 and dec[1] > 0.0
    ra, dec = Wcs.tan(10.0, 0.0, 0.0, 0.0, 1.0, angle_deg=90.0).sky_from_pixel(0.0, 100.0)
    assert ra == pytest.approx(10.0 + 100.0 / 3600.0, abs=1e-6) and dec == pytest.approx(0.0, abs=1e-9)
    ra, _ = Wcs.tan(10.0, 0.0, 0.0, 0.0, 1.0, flip=False).sky_from_pixel(100.0, 0.0)
    assert ra > 10.0
    assert plain.pixel_scale_arcsec == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
def test_positions_without_a_pixel_are_nan(kind):
    """The far hemisphere and NaN have no pixel, and do not disturb their neighbours."""
    wcs = make(kind)
    ra, dec = wcs.sky_from_pixel(100.0, 200.0)
    x, y = wcs.pixel_from_sky([330.0, np.nan, ra], [-2.0, 0.0, dec])
    assert np.isnan([x[:2], y[:2]]).all()
    np.testing.assert_allclose((x[2], y[2]), (100.0, 200.0), rtol=0, atol=1e-8)


def test_shapes_follow_the_input():
    """Scalars, matrices and empty arrays come back with their shape, in float64."""
    for shape in [(), (3, 4), (0,)]:
        ra, dec = make("TPV").sky_from_pixel(np.ones(shape, np.float32), np.ones(shape, np.float32))
        assert ra.shape == dec.shape == shape and ra.dtype == np.float64
        assert make("SIP").pixel_from_sky(ra, dec)[0].shape == shape


def test_wcs_is_a_value():
    """Equal WCS hash alike and survive pickling."""
    assert pickle.loads(pickle.dumps(make("TPV"))) == make("TPV")
    assert len({make("SIP"), make("SIP"), make("TAN")}) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "ZPN"}, "kind must be one of"),
        ({"distortion": SIP_TERMS}, "distortion"),
        ({"cd": ((1.0, 2.0), (2.0, 4.0))}, "determinant"),
        ({"crval": (float("nan"), 0.0)}, "finite"),
    ],
)
def test_impossible_wcs_is_refused(change, message):
    """A WCS that cannot work says why."""
    with pytest.raises(InputError, match=message):
        replace(make("TAN"), **change)


@pytest.mark.real
@pytest.mark.parametrize("name", ["c4d_171113_060340_ooi_r_ls9.N6.fits.gz", "c4d_130105_065255_ooi_r_a1-N15.fits.fz"])
def test_decam_headers_agree_with_astropy(name):
    """The TPV solutions of real DECam frames agree with astropy.wcs in both directions."""
    from nightstream.io.wcs_cards import wcs_from_header

    path = real_data("decam_legacypipe_multiepoch") / "testcase8" / "images" / name
    with fits.open(path) as hdus:
        header = next(hdu.header for hdu in hdus if "CTYPE1" in hdu.header)
    wcs = wcs_from_header(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        expected = WCS(header)
    x, y = grid()
    sky = expected.all_pix2world(x, y, 0)
    assert wcs.kind == "TPV"
    assert separation_pix(*wcs.sky_from_pixel(x, y), *sky, wcs).max() < 1e-6
    np.testing.assert_allclose(wcs.pixel_from_sky(*sky), (x, y), rtol=0, atol=1e-6)
