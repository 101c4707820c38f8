"""Cutouts as FITS: what astropy opens, sees and measures in them."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS
from exposures import NJY_PER_ELECTRON, epochs
from product_scene import make_cutouts, make_wcs
from scenes import lattice

from nightstream.engine.config import CutoutConfig, MeasureConfig
from nightstream.engine.cutouts import cut_stamps
from nightstream.engine.measure import measure_dia_sources
from nightstream.errors import InputError
from nightstream.io.alerts.cutout_fits import fits_cutouts, local_tan
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.stamps import stamp_starts
from nightstream.kernels.wcs import Wcs

KINDS = ("difference", "science", "template")
MAS = units.mas


def opened(data: bytes) -> fits.HDUList:
    hdus = fits.open(io.BytesIO(data))
    hdus.verify("exception")
    return hdus


@pytest.fixture(scope="module")
def measured():
    """Variables on 200 x 200 pixels, one at a corner, and their DIASources and cutouts."""
    x, y, shape = lattice(np.random.default_rng(90), 4, 50)
    x, y = np.r_[x, 2.3], np.r_[y, 1.8]
    then, now = np.full(x.size, 2e3), np.full(x.size, 2e4)
    images = epochs(PlainTarget, np.random.default_rng(91), shape, (x, y, now), (x, y, then))
    sources = measure_dia_sources(*images, MeasureConfig())
    return images, sources, cut_stamps(*images, sources, CutoutConfig())


class PlainTarget:
    """NumPy arrays."""

    array = staticmethod(np.asarray)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_stamps(kind):
    """Image, variance, mask and PSF are read back bit by bit, whatever the size; every block is full."""
    cutouts = make_cutouts(5)
    stamps, start = getattr(cutouts, kind), stamp_starts(cutouts.size)
    for k, data in enumerate(fits_cutouts(cutouts, kind, make_wcs())):
        assert len(data) % 2880 == 0
        hdus = opened(data)
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "UNCERT", "MASK", "PSFIMAGE"]
        planes = stamps.image, stamps.variance, stamps.mask
        for hdu, plane in zip(hdus, planes, strict=False):
            np.testing.assert_array_equal(hdu.data, plane[start[k] : start[k + 1]].reshape(hdu.data.shape))
        np.testing.assert_array_equal(hdus["PSFIMAGE"].data, stamps.psf[k])
        assert (hdus[0].header["BUNIT"], hdus["MASK"].data.dtype.kind) == ("nJy", "i")


def test_mask_planes_are_named():
    """MP_<PLANE> gives each bit's number, long names too."""
    header = opened(fits_cutouts(make_cutouts(1), "science", make_wcs())[0])["MASK"].header
    assert {plane.name: 1 << header[f"MP_{plane.name}"] for plane in MaskPlane} == {p.name: p.value for p in MaskPlane}


def test_ccddata_opens_a_stamp():
    """Astropy's CCDData finds unit, uncertainty, mask, PSF and WCS, without a warning."""
    cutouts = make_cutouts(2)
    data = fits_cutouts(cutouts, "difference", make_wcs())[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ccd = CCDData.read(io.BytesIO(data), format="fits")
    pixels = slice(int(cutouts.size[0]) ** 2, None)
    assert ccd.unit == units.nJy and ccd.uncertainty.uncertainty_type == "var" and ccd.wcs.has_celestial
    np.testing.assert_array_equal(ccd.uncertainty.array.ravel(), cutouts.difference.variance[pixels])
    np.testing.assert_array_equal(ccd.mask.ravel(), cutouts.difference.mask[pixels] != 0)
    np.testing.assert_array_equal(ccd.psf, cutouts.difference.psf[1])


@pytest.mark.parametrize(
    "wcs",
    [
        make_wcs(),
        Wcs.tan(0.001, 40.0, 250.0, 150.0, 0.2, angle_deg=200.0),  # across ra 0
        Wcs.tan(10.0, 89.999, 250.0, 150.0, 0.2, angle_deg=-70.0),  # around the pole
        Wcs.tan(200.0, -89.0, 250.0, 150.0, 0.2, flip=False),
    ],
)
def test_positions_agree_with_the_detector(wcs):
    """All over a stamp of 30 pixels the file's WCS, as astropy reads it, is within 1 mas of the detector's."""
    cutouts = make_cutouts(6)
    for k, data in enumerate(fits_cutouts(cutouts, "science", wcs)):
        y, x = np.mgrid[0:30:5, 0:30:5].astype(float)
        seen = WCS(fits.Header.fromstring(data[:2880])).pixel_to_world(x, y)
        truth = SkyCoord(*wcs.sky_from_pixel(x + cutouts.x0[k], y + cutouts.y0[k]), unit="deg")
        assert seen.separation(truth).max() < 1 * MAS


def test_crpix_is_the_source_and_rotpa_points_along_y():
    """CRVAL and CRPIX are the source's place on the sky and in the stamp; a TAN turned by 20 degrees has ROTPA 20."""
    cutouts, wcs = make_cutouts(3), Wcs.tan(150.0, 0.0, 258.0, 150.0, 0.2, angle_deg=20.0)
    for k, data in enumerate(fits_cutouts(cutouts, "science", wcs)):
        header = fits.Header.fromstring(data[:2880])
        ra, dec = wcs.sky_from_pixel(cutouts.x[k], cutouts.y[k])
        np.testing.assert_allclose([header["CRVAL1"], header["CRVAL2"]], [ra, dec], rtol=0, atol=1e-11)
        np.testing.assert_allclose(header["CRPIX1"] - 1 + cutouts.x0[k], cutouts.x[k], atol=1e-9)
        assert abs(header["ROTPA"] - 20.0) < 1e-4


def test_a_tan_is_its_own_local_tan():
    """Near its reference point the matrix is the detector's to the second order of the distance (1e-4 rad squared)."""
    wcs = Wcs.tan(150.0, -30.0, 100.0, 120.0, 0.2, angle_deg=20.0)
    ra, dec, cd = local_tan(wcs, np.array([100.0]), np.array([120.0]))
    np.testing.assert_allclose([ra[0], dec[0]], [150.0, -30.0], atol=1e-12)
    np.testing.assert_allclose(cd[0], wcs.cd, rtol=0, atol=1e-7 * 0.2 / 3600)


def test_photometry_on_the_file_gives_the_flux_of_the_table(measured):
    """A PSF fit on the opened file, at its CRPIX and with its PSFIMAGE, is psf_flux: nothing was lost on the way."""
    images, sources, cutouts = measured
    files = fits_cutouts(cutouts, "difference", images.difference.wcs)
    assert len(files) >= 17
    for k, data in enumerate(files):
        hdus = opened(data)
        image, variance, mask = (hdus[name].data for name in (0, "UNCERT", "MASK"))
        x, y = (np.array([hdus[0].header[f"CRPIX{axis}"] - 1]) for axis in (1, 2))
        fit = psf_flux(image, mask, variance, x, y, PsfModel.constant(hdus["PSFIMAGE"].data))
        # float32 pixels scaled to nJy and a PSF rounded to float32: 625 terms of relative error 1e-7
        np.testing.assert_allclose(fit["flux"], sources["psf_flux"][k], rtol=1e-5)
        np.testing.assert_allclose(fit["flux_err"], sources["psf_flux_err"][k], rtol=1e-5)


def test_pixels_off_the_image_are_nan_and_no_data(measured):
    """A source at the corner has its stamps; what is beyond the image is NaN, and masked NO_DATA."""
    images, sources, cutouts = measured
    corner = int(np.argmin(sources["x"] + sources["y"]))
    for kind, exposure in zip(KINDS, images, strict=True):
        hdus = opened(fits_cutouts(cutouts, kind, exposure.wcs, [corner])[0])
        off = (hdus["MASK"].data & (1 << hdus["MASK"].header["MP_NO_DATA"])) != 0
        assert off[0].all() and off[:, 0].all() and not off[-15:, -15:].any()
        np.testing.assert_array_equal(np.isnan(hdus[0].data), off)
        box = tuple(slice(None, int(cutouts.size[corner] + first[corner])) for first in (cutouts.y0, cutouts.x0))
        on_image = exposure.pixels.image[box] * np.float32(NJY_PER_ELECTRON)
        np.testing.assert_array_equal(hdus[0].data[~off], on_image.ravel())


def test_rows_are_taken_in_the_order_asked_for():
    """Any rows, in any order, also of mixed sizes, and none at all."""
    cutouts, wcs = make_cutouts(5), make_wcs()
    whole = fits_cutouts(cutouts, "template", wcs)
    assert fits_cutouts(cutouts, "template", wcs, np.array([3, 0, 3])) == [whole[3], whole[0], whole[3]]
    assert fits_cutouts(cutouts, "template", wcs, np.array([], dtype=int)) == []


def test_a_source_that_is_nowhere_still_has_a_file():
    """Without a finite position the stamp is opened all the same, with the detector's own WCS."""
    cutouts = make_cutouts(2)
    lost = replace(cutouts, x=np.full(2, np.nan), y=np.full(2, np.nan))
    header = opened(fits_cutouts(lost, "science", make_wcs())[0])[0].header
    np.testing.assert_allclose([header["CRVAL1"], header["CRVAL2"]], make_wcs().crval, atol=1e-11)


def test_unknown_kinds_and_rows_are_told():
    """What is not there is an error, not an empty file."""
    with pytest.raises(InputError, match="got 'score'"):
        fits_cutouts(make_cutouts(1), "score", make_wcs())
    for row in (1, -1):
        with pytest.raises(InputError, match=f"there are 1 cutouts, got row {row}"):
            fits_cutouts(make_cutouts(1), "science", make_wcs(), [row])


def test_every_mask_plane_fits_the_stamp():
    """MASK has 16 bits, one of them the sign."""
    assert max(MaskPlane) < 1 << 15
