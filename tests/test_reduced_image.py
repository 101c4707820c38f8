"""Reduced images as files: what headers and options say comes in, a difference goes out that astropy and others open."""

import gzip
import os
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from reduced_pair import expose, field, subtract

from nightstream.engine.config import SubtractConfig
from nightstream.engine.subtraction import subtract_images
from nightstream.errors import FileError, InputError
from nightstream.io.reduced_image import read_reduced, write_difference
from nightstream.io.wcs_cards import wcs_to_cards
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

SHAPE = (200, 220)
IMAGE = np.random.default_rng(1).normal(100, 5, SHAPE).astype(np.float32)
SKY = Wcs.tan(150.0, 2.0, 109.5, 99.5, 0.2, 10.0)
CARDS = [("GAIN", 2.5), ("RDNOISE", 7.0), ("SATURATE", 6e4), ("OBJECT", "M 83"), ("HISTORY", "flat-fielded")]


def header(*cards):
    made = fits.Header()
    made.extend(wcs_to_cards(SKY))
    for card in (*CARDS, *cards):
        made.append(card)
    return made


def write(path, *cards, image=IMAGE):
    fits.writeto(path, image, header(*cards))
    return path


def write_gzip(path):
    return write(path.with_suffix(".fits.gz"))


def write_rice(path):
    packed = fits.CompImageHDU(IMAGE, header(), compression_type="RICE_1", quantize_level=1e5)
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path)
    return path


def write_second(path):
    catalogue = fits.BinTableHDU.from_columns([fits.Column("X", "D", array=np.arange(3.0))])
    cube = fits.ImageHDU(np.zeros((2, 3, 4)))
    fits.HDUList([fits.PrimaryHDU(), catalogue, cube, fits.ImageHDU(IMAGE, header(), name="SCI")]).writeto(path)
    return path


@pytest.mark.parametrize("writer", [write, write_gzip, write_rice, write_second])
def test_every_kind_of_file_is_read(writer, tmp_path):
    """Plain, gzipped, Rice compressed, in a later extension: pixels, header and WCS are those that were written."""
    got = read_reduced(writer(tmp_path / "image.fits"))
    np.testing.assert_allclose(got.image, IMAGE, atol=5e-4)  # quantised to sigma / 1e5 where compressed
    assert got.image.dtype == np.float32 and got.image.flags.c_contiguous and got.image.dtype.isnative
    assert (got.gain, got.read_noise, got.saturation) == (2.5, 7.0, 6e4)
    assert "M 83" in got.info.header and got.info.path.startswith(str(tmp_path))
    np.testing.assert_allclose(got.wcs.pixel_from_sky(150.0, 2.0), SKY.pixel_from_sky(150.0, 2.0), atol=1e-9)


def test_integers_come_scaled_and_blanks_as_nan(tmp_path):
    """BZERO and BSCALE are applied; BLANK pixels have no value."""
    pixels = np.array([[0, 1, 2], [3, 4, -32768]], np.int16)
    hdu = fits.PrimaryHDU(pixels)
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 100.0, -32768
    hdu.writeto(tmp_path / "scaled.fits")
    got = read_reduced(tmp_path / "scaled.fits").image
    np.testing.assert_array_equal(got, [[100, 100.5, 101], [101.5, 102, np.nan]])


@pytest.mark.parametrize(
    ("cards", "gain"),
    [
        ([], None), ([("EGAIN", 1.3)], 1.3), ([("GAIN", 0), ("EGAIN", 1.3)], 1.3), ([("GAIN", "low")], None),
        ([("GAIN", -1)], None),
    ],
)  # fmt: skip
def test_the_first_gain_that_makes_sense_counts(cards, gain, tmp_path):
    """Zero, text and negative numbers are none."""
    fits.writeto(tmp_path / "image.fits", IMAGE, fits.Header(cards))
    got = read_reduced(tmp_path / "image.fits")
    assert (got.gain, got.read_noise, got.saturation, got.wcs) == (gain, 0.0, None, None)


def test_options_win_over_the_header(tmp_path):
    """Gain, read noise and saturation as given, zero read noise too."""
    got = read_reduced(write(tmp_path / "image.fits"), gain=1.0, read_noise=0.0, saturation=5e4)
    assert (got.gain, got.read_noise, got.saturation) == (1.0, 0.0, 5e4)


@pytest.mark.parametrize("extension", ["SCI", 3])
def test_an_extension_may_be_named(extension, tmp_path):
    """By name or number."""
    np.testing.assert_array_equal(read_reduced(write_second(tmp_path / "image.fits"), extension=extension).image, IMAGE)


def test_mask_variance_and_weight_come_along(tmp_path):
    """Anything nonzero is BAD; a weight is an inverse variance, 0 for no value."""
    path, plane = write(tmp_path / "image.fits"), np.zeros(SHAPE, np.float32)
    plane[3, 4] = 4.0
    fits.writeto(tmp_path / "plane.fits", plane)
    assert read_reduced(path).mask is None and read_reduced(path).variance is None
    mask = read_reduced(path, mask=tmp_path / "plane.fits").mask
    assert mask[3, 4] == MaskPlane.BAD and mask.sum() == MaskPlane.BAD and mask.dtype == np.int32
    np.testing.assert_array_equal(read_reduced(path, variance=tmp_path / "plane.fits").variance, plane)
    weighted = read_reduced(path, weight=tmp_path / "plane.fits").variance
    assert weighted[3, 4] == 0.25 and np.isnan(weighted).sum() == plane.size - 1


def truncated(path):
    os.truncate(write(path), 2880 * 20)


def truncated_gzip(path):
    packed = gzip.compress(write(path.with_name("whole.fits")).read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def foreign_projection(path):
    write(path)
    fits.setval(path, "CTYPE1", value="RA---ZPN")
    fits.setval(path, "CTYPE2", value="DEC--ZPN")


BROKEN = {
    "missing": (lambda path: None, FileError, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), FileError, "got an empty file, wanted FITS"),
    "text": (lambda path: path.write_text("not FITS at all\n" * 500), FileError, "not a readable FITS file"),
    "folder": (lambda path: path.mkdir(), FileError, "cannot be read: Is a directory"),
    "truncated": (truncated, FileError, r"truncated FITS file: got 57600 bytes, wanted at least \d+"),
    "truncated gzip": (truncated_gzip, FileError, "truncated or damaged gzip file"),
    "cube": (lambda path: fits.writeto(path, np.zeros((2, 3, 4))), InputError, "got no two-dimensional image, wanted one"),
    "projection": (foreign_projection, InputError, "ZPN"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_named(case, tmp_path):
    """One line, whatever is wrong with it, with the path."""
    path = tmp_path / "image.fits"
    breaker, kind, message = BROKEN[case]
    breaker(path)
    with pytest.raises(kind, match=message) as caught:
        read_reduced(path)
    assert caught.value.path == str(path) and "\n" not in str(caught.value)


def test_planes_and_extensions_that_do_not_fit(tmp_path):
    """A mask of another shape, an extension that is none, or no image."""
    path = write(tmp_path / "image.fits")
    fits.writeto(tmp_path / "small.fits", np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"shape \(3, 4\), wanted that of the image it belongs to, \(200, 220\) .*small.fits"):
        read_reduced(path, mask=tmp_path / "small.fits")
    for extension in ("SCI", 7):
        with pytest.raises(FileError, match="cannot read the image: .*image.fits"):
            read_reduced(path, extension=extension)
    with pytest.raises(InputError, match="got no two-dimensional image"):
        read_reduced(write_second(tmp_path / "second.fits"), extension=1)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The difference of two images that were files, with a score image."""
    folder, stars = tmp_path_factory.mktemp("pair"), field(40, shape=(256, 256))
    paths = [folder / "science.fits", folder / "template.fits"]
    for path, options in zip(paths, ({"fwhm": 4.0}, {"fwhm": 3.2, "depth": 4.0, "seed": 3}), strict=True):
        image = expose(stars, shape=(256, 256), **options)
        write(path, ("DATASUM", "0"), ("EXPTIME", 30.0), image=image.image)
        fits.setval(path, "GAIN", value=image.gain)
        fits.setval(path, "RDNOISE", value=0.0)
    return subtract_images(*(read_reduced(path) for path in paths), SubtractConfig(score=True))


@pytest.fixture(scope="module")
def written(done, tmp_path_factory):
    provenance = {"science": "scïence.fits", "long": "x" * 300}
    return write_difference(tmp_path_factory.mktemp("out") / "difference.fits", done, provenance)


def test_the_difference_comes_first_and_all_planes_follow(done, written):
    """Primary and named extensions hold the very pixels; the file passes astropy's verification."""
    with fits.open(written) as hdus:
        hdus.verify("exception")
        names = [hdu.name for hdu in hdus]
        assert names == ["PRIMARY", "MASK", "VARIANCE", "MATCHED", "PSF", "PSF_MODEL", "KERNEL", "SCORE", "FLUX", "FLUX_ERR"]
        pixels = done.difference.pixels
        wanted = {0: pixels.image, "MASK": pixels.mask, "VARIANCE": pixels.variance, "SCORE": done.score.score}
        wanted |= {"MATCHED": done.result.matched_template.pixels.image, "FLUX_ERR": done.score.flux_err}
        for name, plane in wanted.items():
            np.testing.assert_array_equal(hdus[name].data, plane)


def test_the_header_says_what_was_done(done, written):
    """Cards of the science image, the numbers of the fit, and where it all came from."""
    head = fits.getheader(written)
    assert (head["OBJECT"], head["EXPTIME"], head["GAIN"]) == ("M 83", 30.0, 1.0)
    assert head["NS KERNEL_SUM"] == done.diagnostics["kernel_sum"] and "DATASUM" not in head
    history = "".join(head["HISTORY"])
    assert "flat-fielded" in history and "science: sc?ence.fits" in history and "x" * 300 in history


def test_the_wcs_is_kept(written):
    """astropy finds every pixel where the science image has it."""
    x, y = np.array([0.0, 255.0, 100.0]), np.array([0.0, 13.0, 255.0])
    np.testing.assert_allclose(WCS(fits.getheader(written)).all_pix2world(x, y, 0), SKY.sky_from_pixel(x, y), atol=1e-9)


def test_a_wcs_that_no_header_holds_is_written(done, tmp_path):
    """Values made without a file: the cards are those of the `Wcs`."""
    bare = replace(done.result, difference=replace(done.difference, info=replace(done.difference.info, header="")))
    path = write_difference(tmp_path / "bare.fits", replace(done, result=bare))
    np.testing.assert_allclose(WCS(fits.getheader(path)).all_pix2world(10.0, 20.0, 0), SKY.sky_from_pixel(10.0, 20.0), atol=1e-9)


def test_mask_bits_are_named(written):
    """MP_<PLANE> is the number of the bit that the plane has."""
    head = fits.getheader(written, "MASK")
    assert {plane: 1 << head[f"MP_{plane.name}"] for plane in MaskPlane} == {plane: int(plane) for plane in MaskPlane}


def test_psf_and_kernel_can_be_evaluated(done, written):
    """PSF_MODEL with its polynomial is the PSF anywhere; PSF and KERNEL are those of the middle."""
    with fits.open(written) as hdus:
        head, planes = hdus["PSF_MODEL"].header, hdus["PSF_MODEL"].data
        numbers = (head[name] for name in ("ORDER", "XCENTRE", "YCENTRE", "XSCALE", "YSCALE"))
        model = PsfModel(planes, *numbers)
        for at in ((127.5, 127.5), (20.0, 230.0)):
            np.testing.assert_array_equal(model.centred(*at), done.difference.psf.centred(*at))
        middle = hdus["PSF"].header["PSF_X"], hdus["PSF"].header["PSF_Y"]
        np.testing.assert_array_equal(hdus["PSF"].data, model.centred(*middle)[0])
        assert hdus["KERNEL"].data.sum() == pytest.approx(done.diagnostics["kernel_sum"], rel=1e-5)


def test_proper_subtraction_writes_no_kernel(tmp_path):
    """What was not fitted is not in the file."""
    stars = field(40, shape=(256, 256))
    proper = subtract(expose(stars, shape=(256, 256)), expose(stars, shape=(256, 256), seed=3), method="zogy")
    with fits.open(write_difference(tmp_path / "proper.fits", proper)) as hdus:
        assert "KERNEL" not in hdus and "SCORE" not in hdus and hdus[0].header["NS KERNEL_SUM"] == pytest.approx(1, abs=0.01)


def test_the_file_is_complete_or_absent(done, tmp_path, monkeypatch):
    """A disk that is full in the middle leaves the older file, and nothing beside it."""
    path = write_difference(tmp_path / "difference.fits", done)
    before = path.read_bytes()

    def fill(self, name, **options):
        name.write_bytes(before[:5000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits.HDUList, "writeto", fill)
    with pytest.raises(FileError, match="could not write the file: No space left on device .*difference.fits"):
        write_difference(path, done)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["difference.fits"]


def test_a_difference_can_be_read_again(written, done):
    """Its primary image is a reduced image with WCS and header."""
    again = read_reduced(written)
    np.testing.assert_array_equal(again.image, done.difference.pixels.image)
    assert again.wcs is not None and again.gain == 1.0
