"""FITS cards and WCS values say the same thing."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_wcs import DISTORTION, grid, make, oracle, separation_pix

from nightstream.errors import InputError
from nightstream.io.wcs_cards import card_text, wcs_from_header, wcs_to_cards, wcs_to_text

# with a CD matrix only: wcslib applies TPV before CDELT, where the FITS registry knows no CDELT
TPV_CARDS = {
    "CTYPE1": "RA---TPV",
    "CTYPE2": "DEC--TPV",
    "CDELT1": None,
    "CDELT2": None,
    "CD1_1": 1e-4,
    "CD2_2": 2e-4,
}
TPV_CARDS |= {"PV1_1": 1.01, "PV1_5": 0.1, "PV2_1": 1.0, "PV2_7": 0.2}


def header_with(**cards):
    """Return a plain TAN header, changed by ``cards``; None removes a card."""
    basic = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 40.0, "CRVAL2": -30.0, "CRPIX1": 100.5}
    basic |= {"CRPIX2": 200.0, "CDELT1": -1e-4, "CDELT2": 2e-4} | cards
    return fits.Header([(key, value) for key, value in basic.items() if value is not None])


def assert_same_sky(header):
    """Compare with astropy.wcs on the detector."""
    x, y = np.meshgrid(np.linspace(-50, 2100, 7), np.linspace(-50, 4150, 9))
    wcs = wcs_from_header(header)
    expected = WCS(header).all_pix2world(x.ravel(), y.ravel(), 0, ra_dec_order=True)
    assert separation_pix(*wcs.sky_from_pixel(x.ravel(), y.ravel()), *expected, wcs).max() < 1e-6


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("crpix", [(0.1, -1e-7), (-5448.123456789012, 7466.000000000001), (1 / 3, 2 / 3)])
def test_text_round_trip_is_exact(kind, crpix):
    """Writing cards and reading them back gives an equal WCS, bit for bit."""
    wcs = replace(make(kind, lonpole=179.9999999999999), crpix=crpix)
    text = wcs_to_text(wcs)
    back = wcs_from_header(text)
    assert all(len(line) == 80 for line in text.splitlines())
    assert back == wcs
    assert wcs_to_text(back) == wcs_to_text(wcs_from_header(wcs_to_text(back)))


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
def test_cards_mean_the_same_to_astropy(kind):
    """Astropy, given our cards, puts pixels where we do; given its cards, we do too."""
    assert_same_sky(fits.Header(wcs_to_cards(make(kind))))
    x, y = grid()
    back = wcs_from_header(oracle(make(kind)).to_header(relax=True))
    found = make(kind).sky_from_pixel(x, y)
    # astropy writes 12 significant digits of matrix and coefficients: 1e-11 * 5000 pixels
    assert separation_pix(*back.sky_from_pixel(x, y), *found, make(kind)).max() < 1e-6


@pytest.mark.parametrize("kind", ["TAN", "SIP", "TPV"])
@pytest.mark.parametrize("crpix", [(1023.5, 2047.25), (-21000.0, 14000.0)])
def test_cards_of_a_corrected_wcs_mean_the_same_to_astropy(kind, crpix):
    """A WCS with a fitted distortion is written so that astropy agrees in both directions, and reads back as it was."""
    wcs = replace(make(kind), crpix=crpix).with_distortion(DISTORTION)
    header = fits.Header(wcs_to_cards(wcs))
    x, y = grid()
    sky = WCS(header).all_pix2world(x, y, 0)
    assert separation_pix(*wcs.sky_from_pixel(x, y), *sky, wcs).max() < 1e-6
    np.testing.assert_allclose(wcs.pixel_from_sky(*sky), (x, y), rtol=0, atol=1e-6)
    back = WCS(header).all_world2pix(*wcs.sky_from_pixel(x, y), 0, tolerance=1e-6)
    np.testing.assert_allclose(back, (x, y), rtol=0, atol=1e-4)
    assert wcs_from_header(wcs_to_text(wcs)) == wcs


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"CROTA2": 33.0},
        {"PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
        {"CDELT1": None, "CDELT2": None, "CD1_1": 1e-4, "CD2_2": 2e-4},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -30.0, "CRVAL2": 40.0},
        {"CRVAL2": 90.0},
        TPV_CARDS,
    ],
)
def test_every_spelling_agrees_with_astropy(cards):
    """CDELT, CROTA, PC, CD, swapped axes, the pole and TPV mean what astropy says they mean."""
    assert_same_sky(header_with(**cards))


@pytest.mark.parametrize(
    "cards",
    [
        {"CTYPE1": None, "CTYPE2": None},
        {"CTYPE1": "PIXEL", "CTYPE2": "PIXEL"},
        {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"},
        {"CDELT1": None, "CDELT2": None},
        {"CDELT1": 0.0, "CDELT2": 0.0},
        {"CRVAL1": None},
    ],
)
def test_header_without_celestial_wcs_gives_none(cards):
    """A bias frame has no sky."""
    assert wcs_from_header(header_with(**cards)) is None


@pytest.mark.parametrize(
    "cards, message",
    [
        ({"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN"}, "'RA---ZPN'"),
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "'GLON-TAN'"),
        ({"CUNIT1": "arcsec"}, "unit must be deg, got arcsec"),
        ({"RADESYS": "FK4"}, "got FK4"),
        ({"CRPIX1": "abc"}, "CRPIX1 must be a number"),
        ({"CDELT1": "abc"}, "CDELT1 must be a number, got 'abc'"),
    ],
)
def test_unsupported_wcs_is_named(cards, message):
    """What cannot be understood is refused by name."""
    with pytest.raises(InputError, match=message):
        wcs_from_header(header_with(**cards))


def test_tpv_may_be_spelled_tan():
    """SCAMP's TAN with PV terms is a TPV, and a TPV without PV terms is a TAN (PVi_1 defaults to 1)."""
    terms = {"PV1_1": 1.01, "PV1_5": 0.1, "PV2_7": 0.2}
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}
    assert wcs_from_header(header_with(**terms)) == wcs_from_header(header_with(**terms, **tpv))
    x, y = grid()
    expected = wcs_from_header(header_with()).sky_from_pixel(x, y)
    np.testing.assert_array_equal(wcs_from_header(header_with(**tpv)).sky_from_pixel(x, y), expected)


def test_card_text_reads_back():
    """Quotes, booleans, integers and long floats survive."""
    cards = [
        ("OBJECT", "o'clock", "a name"),
        ("FLAG", True, "yes"),
        ("N", 12, "number"),
        ("X", -1.2345678901234567e-4, ""),
    ]
    header = fits.Header.fromstring("".join(card_text(*card) for card in cards))
    assert [header[key] for key, _, _ in cards] == [value for _, value, _ in cards]
