"""Exported FITS files are valid, and say what the HDF5 file says."""

import errno

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from product_scene import make_calibrations, make_products, make_template, make_wcs

from nightstream.errors import FileError, InputError
from nightstream.io.calibrations import write_calibrations
from nightstream.io.export import export_fits
from nightstream.io.products import write_detector_products, write_visit_master
from nightstream.io.templates import write_template
from nightstream.io.wcs_cards import wcs_from_header


@pytest.fixture
def exported(tmp_path):
    """A detector's products as FITS."""
    return export_fits(write_detector_products(tmp_path, make_products()), tmp_path / "out.fits")


def test_products_become_a_valid_file(exported):
    """Astropy's verification passes, and every part is there under its name."""
    with fits.open(exported) as hdus:
        hdus.verify("exception")
        names = {hdu.name for hdu in hdus}
    for image in ("VISIT_IMAGE", "DIFFERENCE"):
        assert {image, f"{image}_MASK", f"{image}_VARIANCE", f"{image}_PSF"} <= names
    assert {"DIA_SOURCES", "FORCED_SOURCES"} <= names


def test_pixels_are_the_same(exported):
    """Planes are exported without loss, with unit, flux scale and the bits of the mask."""
    pixels = make_products().difference.pixels
    with fits.open(exported) as hdus:
        np.testing.assert_array_equal(hdus["DIFFERENCE"].data, pixels.image)
        np.testing.assert_array_equal(hdus["DIFFERENCE_MASK"].data, pixels.mask)
        np.testing.assert_array_equal(hdus["DIFFERENCE_VARIANCE"].data, pixels.variance)
        assert hdus["DIFFERENCE"].header["BUNIT"] == "electron"
        assert hdus["DIFFERENCE"].header["MAGZERO"] == pytest.approx(31.4 - 2.5 * np.log10(12.3456789))
        assert hdus["DIFFERENCE_MASK"].header["MP_DETECTED_NEGATIVE"] == 6
        assert hdus["DIFFERENCE_PSF"].data.sum() == pytest.approx(1.0, abs=1e-5)


def test_wcs_round_trip(exported):
    """The exported WCS is the product's, and astropy.wcs puts pixels where we do, to 1e-6 pixel."""
    x, y = np.array([0.0, 516.0, 100.25]), np.array([0.0, 299.0, 7.5])
    for name in ("VISIT_IMAGE", "DIFFERENCE", "DIFFERENCE_MASK"):
        header = fits.getheader(exported, name)
        assert wcs_from_header(header) == make_wcs()
        ra, dec = WCS(header).all_pix2world(x, y, 0)
        back = make_wcs().pixel_from_sky(ra, dec)
        np.testing.assert_allclose(back, (x, y), rtol=0, atol=1e-6)


def test_tables_have_names_units_and_values(exported):
    """TOPCAT and astropy see the APDB's columns, units and values."""
    table = Table.read(exported, hdu="DIA_SOURCES", mask_invalid=False)
    sources = make_products().dia_sources
    np.testing.assert_array_equal(table["psfFlux"], sources["psf_flux"])
    np.testing.assert_array_equal(table["diaSourceId"], sources["dia_source_id"])
    np.testing.assert_array_equal(table["isDipole"], sources["is_dipole"])
    assert table["psfFlux"].unit == "nJy" and table["ra"].unit == "deg"
    assert [str(band) for band in table["band"]] == ["g"] * 4


def test_raw_header_is_kept_without_its_wcs(exported):
    """What the telescope said stays in the primary header; what described the raw pixels does not."""
    header = fits.getheader(exported, 0)
    assert (header["OBJECT"], header["EXPTIME"]) == ("a field", 15.0)
    assert (header["VISIT"], header["DETECTOR"], header["BAND"]) == (2026112200123, 7, "g")
    assert header["NS_N_STARS"] == 31.0 and "NS_SKY_NOISE" not in header
    assert "CRVAL1" not in header and "template: t-1" in str(header["HISTORY"])


def test_calibrations_and_templates(tmp_path):
    """The other stores are exported by the same rules."""
    path = export_fits(write_calibrations(tmp_path, "cam", make_calibrations()), tmp_path / "c.fits.gz")
    with fits.open(path) as hdus:
        hdus.verify("exception")
        np.testing.assert_array_equal(hdus["FLAT"].data, make_calibrations().flat.image)
        np.testing.assert_array_equal(hdus["DEFECTS"].data, make_calibrations().defects)
    path = export_fits(write_template(tmp_path, 7, make_template()), tmp_path / "t.fits")
    with fits.open(path) as hdus:
        hdus.verify("exception")
        np.testing.assert_array_equal(hdus["NOISE_CORRELATION"].data, make_template().noise_correlation)
        np.testing.assert_array_equal(hdus["STARS"].data["x"], make_template().stars["x"])
        assert wcs_from_header(hdus["TEMPLATE"].header) == make_wcs()


def test_empty_tables_export(tmp_path):
    """A detector without sources gives tables without rows."""
    from dataclasses import replace

    products = replace(make_products(), dia_sources={}, forced_sources={}, difference=None)
    path = export_fits(write_detector_products(tmp_path, products), tmp_path / "out.fits")
    with fits.open(path) as hdus:
        assert len(hdus["DIA_SOURCES"].data) == 0 and "DIFFERENCE" not in hdus


def test_what_cannot_be_exported_is_named(tmp_path):
    """A master has no pixels; a file of somebody else is refused."""
    with pytest.raises(InputError, match="holds visit, wanted .*visit.h5"):
        export_fits(write_visit_master(tmp_path, 1, []), tmp_path / "out.fits")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="something unknown"):
        export_fits(tmp_path / "other.h5", tmp_path / "out.fits")


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """An export that cannot be finished leaves no file."""
    path = write_detector_products(tmp_path, make_products())

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("astropy.io.fits.HDUList.writeto", full)
    with pytest.raises(FileError, match="No space left on device .*out.fits"):
        export_fits(path, tmp_path / "out.fits")
    assert {entry.name for entry in tmp_path.iterdir()} == {"visit=2026112200123"}
