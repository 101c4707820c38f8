"""Raw frames: what is read is what was written, and every broken file is one clear error."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time

from nightstream.engine.assembly import assemble_amplifiers, raw_from_detector
from nightstream.errors import FileError, InputError
from nightstream.io.cameras import load_camera
from nightstream.io.header import header_text
from nightstream.io.raw import read_info, read_raw
from nightstream.io.sections import parse_section
from nightstream.io.wcs_cards import parse_cards

CAMERA = load_camera("simulator")
DETECTOR = CAMERA.detectors[2]
FACTS = {
    "INSTRUME": "nightstream-sim", "VISIT": 42, "DETECTOR": 2, "IMGTYPE": "OBJECT", "FILTER": "r", "EXPTIME": 30.0,
    "DARKTIME": 31.5, "MJD-BEG": 60000.25,
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": -5.0, "CRPIX1": 512.5, "CRPIX2": 500.0,
    "CD1_1": -5.6e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 5.6e-5,
}  # fmt: skip


def frame(dtype=np.uint16, **facts) -> fits.HDUList:
    """One detector exposure of the simulated camera; a fact that is None is left out."""
    primary = fits.PrimaryHDU()
    primary.header.update({key: value for key, value in (FACTS | facts).items() if value is not None})
    return fits.HDUList([primary, *(fits.ImageHDU(pixels, name=amp.name) for amp, pixels in amplifiers(dtype))])


def amplifiers(dtype):
    rng = np.random.default_rng(5)
    shape = DETECTOR.raw_shape[1:]
    counts = rng.integers(32600, 32900, (DETECTOR.raw_shape[0], *shape))  # on both sides of the sign bit of 16
    counts[:, :2] = rng.integers(0, 65536, counts[:, :2].shape)
    return [(amp, pixels.astype(dtype)) for amp, pixels in zip(DETECTOR.amplifiers, counts, strict=True)]


def expected(dtype=np.uint16) -> np.ndarray:
    return np.stack([pixels for _, pixels in amplifiers(dtype)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "frame.fits"


@pytest.fixture
def written(path):
    """Path of a good frame."""
    frame().writeto(path)
    return path


def written_with(path, **facts):
    frame(**facts).writeto(path)
    return path


def test_pixels_come_back_as_written(written):
    """The stack holds every amplifier in the camera's order, unsigned 16 bit, native and contiguous."""
    pixels = read_raw(written, CAMERA).pixels
    assert pixels.dtype == np.uint16 and pixels.dtype.isnative and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected())


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
def test_pixel_types_are_kept(path, dtype):
    """What the engine takes is not converted."""
    frame(dtype).writeto(path)
    pixels = read_raw(path, CAMERA).pixels
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, expected(dtype))


@pytest.mark.parametrize(("dtype", "becomes"), [(np.int16, np.int32), (np.float64, np.float32), (np.uint8, np.int32)])
def test_other_pixel_types_become_one_the_engine_takes(path, dtype, becomes):
    """Signed 16 and 8 bit widen to int32, doubles round to float32."""
    frame(dtype).writeto(path)
    pixels = read_raw(path, CAMERA).pixels
    assert pixels.dtype == becomes
    np.testing.assert_array_equal(pixels, expected(dtype).astype(becomes))


def test_gzip_files_read_the_same(written):
    """A gzipped file gives the bits of the plain one, whatever its name."""
    zipped = written.with_suffix(".fits.gz")
    zipped.write_bytes(gzip.compress(written.read_bytes()))
    np.testing.assert_array_equal(read_raw(zipped, CAMERA).pixels, expected())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("RICE_1", np.uint16), ("RICE_1", np.int32), ("GZIP_1", np.uint16), ("GZIP_2", np.int32)]
)
def test_tile_compressed_files_read_the_same(path, kind, dtype):
    """Tile compression of integers is lossless: the bits are those that astropy reads and that were written."""
    plain = frame(dtype)
    images = [fits.CompImageHDU(hdu.data, name=hdu.name, compression_type=kind) for hdu in plain[1:]]
    fits.HDUList([plain[0], *images]).writeto(path)
    pixels = read_raw(path, CAMERA).pixels
    np.testing.assert_array_equal(pixels, expected(dtype))
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(pixels, np.stack([hdu.data for hdu in hdus[1:]]))


@pytest.mark.parametrize("kind", [fits.ImageHDU, fits.CompImageHDU], ids=["plain", "compressed"])
def test_pixels_go_where_the_caller_wants_them(path, kind):
    """Page-locked memory, say."""
    hdus = [kind(pixels, name=amp.name) for amp, pixels in amplifiers(np.uint16)]
    fits.HDUList([frame()[0], *hdus]).writeto(path)
    given = []

    def allocate(shape, dtype):
        given.append(np.full(shape, 7, dtype))
        return given[0]

    assert read_raw(path, CAMERA, allocate=allocate).pixels is given[0]
    np.testing.assert_array_equal(given[0], expected())


def test_amplifiers_are_found_by_name_in_any_order(path):
    """The order of the HDUs in the file does not matter where the camera names them."""
    plain = frame()
    fits.HDUList([plain[0], *plain[:0:-1]]).writeto(path)
    np.testing.assert_array_equal(read_raw(path, CAMERA).pixels, expected())


def test_facts_come_from_the_header(written):
    """Identity, kind, band and times are the header's; the middle of the exposure is half of it after its start."""
    info = read_raw(written, CAMERA).info
    assert (info.visit, info.detector, info.camera, info.kind, info.band) == (42, 2, "simulator", "science", "r")
    assert (info.exposure_time_s, info.dark_time_s, info.path) == (30.0, 31.5, str(written))
    assert info.midpoint_mjd_tai == pytest.approx(60000.25 + 15 / 86400, abs=1e-11)  # double precision of an MJD
    assert parse_cards(info.header)["FILTER"] == "r"
    assert info.zero_point == CAMERA.zero_points["r"]


@pytest.mark.parametrize("kind", ["EXPOSE", "BIAS"])
def test_times_agree_with_astropy(kind, tmp_path):
    """UTC text becomes MJD in TAI as astropy does it, to 1e-10 days (the resolution of a float64 MJD is 7e-12)."""
    from nightstream.io.header import exposure_info

    camera = load_camera("sinistro")
    header = fits.Header({"DAY-OBS": "20211007", "FRAMENUM": 42, "OBSTYPE": kind, "FILTER": "w", "EXPTIME": 94.975,
                          "DATE-OBS": "2021-10-08T01:55:17.144"})  # fmt: skip
    info = exposure_info(header, camera, camera.headers, 0)
    middle = Time("2021-10-08T01:55:17.144", scale="utc").tai.mjd + 94.975 / 2 / 86400
    assert info.midpoint_mjd_tai == pytest.approx(middle, abs=1e-10, rel=0)
    assert info.visit == 2021100700042 and info.dark_time_s == 94.975


def test_a_dark_of_no_time_is_a_bias(path):
    """A dark frame exposed for 0 s is a bias, as ESO's archive calls its biases darks."""
    assert read_raw(written_with(path, IMGTYPE="DARK", EXPTIME=0.0), CAMERA).info.kind == "bias"


def test_the_wcs_is_in_pixels_from_zero(written):
    """The header's reference pixel (512.5, 500), counted from 1, is (511.5, 499) here."""
    wcs = read_raw(written, CAMERA).wcs
    assert wcs.crpix == (511.5, 499.0)
    np.testing.assert_allclose(wcs.sky_from_pixel(511.5, 499.0), (10.0, -5.0), rtol=1e-14)


def test_no_wcs_is_no_error(path):
    """A frame without WCS keywords has none."""
    facts = dict.fromkeys(key for key in FACTS if key.startswith(("CTYPE", "CR", "CD")))
    assert read_raw(written_with(path, **facts), CAMERA).wcs is None


def test_header_text_returns_as_the_same_cards(written):
    """Text and cards are two forms of one header, long strings and HIERARCH keywords included."""
    header = fits.getheader(written)
    header["LONG"] = "x" * 120
    header["HIERARCH ESO DET OUT1 ID"] = "L"
    again = parse_cards(header_text(header))
    assert list(again.items()) == list(header.items())


def test_amplifiers_land_mirrored_towards_their_corner(written):
    """Assembly puts raw pixel (x, y) where the amplifier's box and mirrors say, and nothing else anywhere."""
    raw = read_raw(written, CAMERA)
    image = assemble_amplifiers(raw.pixels, DETECTOR)
    assert image.shape == DETECTOR.shape and image.dtype == raw.pixels.dtype
    assert image[1023, 0] == raw.pixels[0, 0, 131]  # C10, read towards the top: its last data column is leftmost
    assert image[0, 0] == raw.pixels[15, 0, 131]  # C00 below, mirrored in x alone
    assert image[511, 127] == raw.pixels[15, 511, 4]
    data = raw.pixels[:, :512, 4:132]
    np.testing.assert_array_equal(np.sort(image, axis=None), np.sort(data, axis=None))


def test_raw_coordinates_follow_the_pixels(written):
    """The affine map from detector to HDU finds, for every amplifier, the pixel that assembly put there."""
    raw = read_raw(written, CAMERA)
    image = assemble_amplifiers(raw.pixels, DETECTOR)
    for amplifier, pixels in zip(DETECTOR.amplifiers, raw.pixels, strict=True):
        x, y = amplifier.detector.x0 + 3, amplifier.detector.y0 + 500
        raw_x, raw_y = np.array(raw_from_detector(amplifier)) @ (x, y, 1)
        assert pixels[int(raw_y), int(raw_x)] == image[y, x]


def test_assembly_refuses_another_shape():
    """A stack that is not the detector's says got and wanted."""
    with pytest.raises(InputError, match=r"got raw pixels of shape \(2, 3, 4\), wanted \(16, 520, 148\) \[detector 2\]"):
        assemble_amplifiers(np.zeros((2, 3, 4)), DETECTOR)


def test_sections_count_from_one_and_may_be_reversed():
    """[509:1,1:2000] is columns 0 to 508 mirrored, rows 0 to 1999; other text is no section."""
    box, flip_x, flip_y = parse_section("[509:1,1:2000]")
    assert (box.x0, box.x1, box.y0, box.y1, flip_x, flip_y) == (0, 509, 0, 2000, True, False)
    assert parse_section("UNKNOWN") is None and parse_section("[0:5,1:2]") is None


def test_header_sections_that_disagree_are_logged(path, caplog):
    """The YAML counts; a header that says otherwise leaves one record that names visit, detector, got and wanted."""
    hdus = frame()
    hdus["C05"].header["DATASEC"] = "[5:132,1:512]"  # agrees
    hdus["C11"].header["DATASEC"] = "[4:131,1:512]"
    hdus["C12"].header["DETSEC"] = "[129:256,513:1023]"
    hdus.writeto(path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_raw(path, CAMERA).pixels, expected())
    (record,) = caplog.records
    text = record.getMessage()
    assert "visit 42 detector 2" in text and "2 in all" in text
    assert "C11 DATASEC got [4:131,1:512], wanted [5:132,1:512]" in text and "C12 DETSEC" in text


def test_a_missing_file_is_a_file_error(path):
    """Nothing there: the error names the file."""
    with pytest.raises(FileError, match=r"no such file \[detector 3, file .*frame\.fits\]"):
        read_raw(path, CAMERA, detector_id=3)


def test_an_empty_file_is_a_file_error(path):
    """No byte in it."""
    path.write_bytes(b"")
    with pytest.raises(FileError, match=r"got an empty file, wanted FITS \[file .*frame\.fits\]"):
        read_raw(path, CAMERA)


def test_a_folder_is_a_file_error(tmp_path):
    """A path that cannot be read says why."""
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_raw(tmp_path, CAMERA)


@pytest.mark.parametrize("text", [b"hello", b"\x89HDF\r\n\x1a\n" * 500])
def test_a_file_that_is_no_fits_is_a_file_error(path, text):
    """Other bytes are refused at once."""
    path.write_bytes(text)
    with pytest.raises(FileError, match="not a readable FITS file"):
        read_raw(path, CAMERA)


@pytest.mark.parametrize("keep", [0.001, 0.01, 0.3, 0.55, 0.999])
@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_one_clear_error(path, keep, compress):
    """Wherever the file was cut, plain or tile compressed: an error that names the file, and no warning."""
    hdus = frame()
    images = [fits.CompImageHDU(hdu.data, name=hdu.name) for hdu in hdus[1:]] if compress else hdus[1:]
    fits.HDUList([hdus[0], *images]).writeto(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises((FileError, InputError), match=r"(truncated|not a readable|missing amplifiers).*frame\.fits"):
        read_raw(path, CAMERA)


@pytest.mark.parametrize("keep", [0.0001, 0.5, 0.9999])
def test_a_truncated_gzip_file_is_a_file_error(written, keep):
    """A cut gzip stream is named as such."""
    whole = gzip.compress(written.read_bytes(), compresslevel=1)
    written.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(FileError, match="truncated or damaged gzip file"):
        read_raw(written, CAMERA)


def test_damaged_tiles_are_a_clear_error(path):
    """Compressed tiles that were overwritten name their amplifier."""
    hdus = frame()
    tiles = [fits.CompImageHDU(hdu.data, name=hdu.name, compression_type="GZIP_1") for hdu in hdus[1:]]
    fits.HDUList([hdus[0], *tiles]).writeto(path)
    with fits.open(path) as hdus:
        start = hdus.fileinfo(4)["datLoc"] + 20000  # beyond the table of tiles, within their bytes
    content = bytearray(path.read_bytes())
    content[start : start + 4000] = b"\x07" * 4000
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match=r"pixels of amplifier C13 cannot be decoded.*visit 42, detector 2"):
        read_raw(path, CAMERA)


def compressed_with_table(path, compression, change):
    """A compressed frame whose table of tiles of amplifier C13, the fourth, is changed: (tiles, 2) lengths, places."""
    hdus = frame()
    tiles = [fits.CompImageHDU(hdu.data, name=hdu.name, compression_type=compression) for hdu in hdus[1:]]
    fits.HDUList([hdus[0], *tiles]).writeto(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        start, n = hdus.fileinfo(4)["datLoc"], hdus[4].header["NAXIS2"]
    content = bytearray(path.read_bytes())
    table = np.frombuffer(content[start : start + 8 * n], ">i4").reshape(n, 2).copy()
    change(table)
    content[start : start + 8 * n] = table.tobytes()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("compression", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_a_shortened_tile_names_its_amplifier(path, compression):
    """A tile of which three bytes are left."""
    compressed_with_table(path, compression, lambda table: table[7].__setitem__(0, 3))
    with pytest.raises(FileError, match=r"pixels of amplifier C13 cannot be decoded: .*visit 42, detector 2"):
        read_raw(path, CAMERA)


@pytest.mark.parametrize("compression", ["GZIP_1", "GZIP_2"])
def test_a_tile_with_a_wrong_checksum_names_its_amplifier(path, compression):
    """One byte of a gzipped tile was overwritten."""
    places = []
    compressed_with_table(path, compression, lambda table: places.extend(table[7]))
    with fits.open(path, disable_image_compression=True) as hdus:
        table, n = hdus.fileinfo(4)["datLoc"], hdus[4].header["NAXIS2"]
    content = bytearray(path.read_bytes())
    content[table + 8 * n + sum(places) - 8] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match=r"pixels of amplifier C13 cannot be decoded: damaged tiles.*visit 42, detector 2"):
        read_raw(path, CAMERA)


@pytest.mark.parametrize("compression", ["RICE_1", "GZIP_1", "GZIP_2"])
def test_a_tile_outside_of_the_file_is_told(path, compression):
    """A place that is billions of bytes away."""
    compressed_with_table(path, compression, lambda table: table[7].__setitem__(1, 2_000_000_000))
    with pytest.raises(FileError, match=r"tiles of HDU 4 lie outside of the file of \d+ bytes.*visit 42, detector 2"):
        read_raw(path, CAMERA)


def test_another_camera_says_got_and_wanted(path):
    """A frame of another instrument is refused before anything is read from it."""
    wanted = r"wrong camera: got INSTRUME 'LSSTCam', wanted 'nightstream-sim' for camera 'simulator' \[file"
    with pytest.raises(InputError, match=wanted):
        read_raw(written_with(path, INSTRUME="LSSTCam"), CAMERA)


@pytest.mark.parametrize("name", ["efosc2", "lsstcam", "sinistro"])
def test_no_camera_takes_the_frames_of_another(written, name):
    """The simulator's frame fits no other camera that ships."""
    with pytest.raises(InputError, match="wrong camera: got INSTRUME"):
        read_raw(written, load_camera(name))


def test_another_detector_says_got_and_wanted(written):
    """The detector asked for must be the one in the file."""
    with pytest.raises(InputError, match=r"got detector 2 in the header, wanted 1 \[visit 42, detector 1, file"):
        read_raw(written, CAMERA, detector_id=1)


def test_a_missing_amplifier_is_named(path):
    """Absent HDUs are listed with visit, detector and file."""
    hdus = frame()
    del hdus["C13"], hdus["C04"]
    hdus.writeto(path)
    message = r"got 14, wanted 16 amplifiers, without C13, C04 \[visit 42, detector 2, file .*frame\.fits\]"
    with pytest.raises(InputError, match=message):
        read_raw(path, CAMERA)


def test_a_misshapen_amplifier_is_named(path):
    """An amplifier of another shape says got and wanted."""
    hdus = frame()
    hdus["C07"].data = hdus["C07"].data[:, :140]
    hdus.writeto(path)
    message = r"amplifier C07: got HDU shape \(520, 140\), wanted \(520, 148\) \(y, x\) \[visit 42, detector 2"
    with pytest.raises(InputError, match=message):
        read_raw(path, CAMERA)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(path, value):
    """A count that is no number has no meaning in a raw frame."""
    hdus = frame(np.float32)
    hdus["C02"].data[3:5, 7] = value
    hdus.writeto(path)
    with pytest.raises(InputError, match=r"amplifier C02: got 2 NaN or infinite pixels, wanted none \[visit 42, det"):
        read_raw(path, CAMERA)


def test_amplifiers_of_two_types_are_refused(path):
    """All amplifiers of a detector share one pixel type."""
    hdus = frame()
    hdus["C02"].data = hdus["C02"].data.astype(np.float32)
    hdus.writeto(path)
    with pytest.raises(InputError, match="got amplifiers of types float32, uint16, wanted one type"):
        read_raw(path, CAMERA)


def test_pixels_wider_than_32_bits_are_refused(path):
    """64-bit integers do not fit and are not cut."""
    frame(np.int64).writeto(path)
    with pytest.raises(InputError, match="amplifier C10: got pixels of type .*, wanted 8 to 32 bits"):
        read_raw(path, CAMERA)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"VISIT": None}, r"header tells no visit: wanted keyword VISIT"),
        ({"VISIT": "abc"}, r"got visit 'abc', wanted an integer"),
        ({"DETECTOR": 9}, r"got detector 9, wanted one of the 4 detectors of 'simulator' \[visit 42"),
        ({"EXPTIME": None}, r"header tells no exposure_time: wanted keyword EXPTIME \[visit 42, detector 2"),
        ({"EXPTIME": -1.0}, r"got exposure_time -1.0, wanted seconds >= 0"),
        ({"EXPTIME": "long"}, r"got exposure_time 'long', wanted seconds >= 0"),
        ({"IMGTYPE": "SELFIE"}, r"got exposure kind 'SELFIE', wanted one of science, bias, dark, flat"),
        ({"MJD-BEG": None}, r"header tells no time: wanted keyword MJD-BEG"),
        ({"MJD-BEG": "noon"}, r"got MJD-BEG 'noon', wanted a time"),
        ({"MJD-BEG": 1e12}, r"got MJD-BEG 1000000000000.0, wanted a time"),
        ({"CTYPE1": "RA---AIT", "CTYPE2": "DEC--AIT"}, r"AIT.*\[visit 42, detector 2, file .*frame\.fits\]"),
    ],
)
def test_unusable_facts_say_got_and_wanted(path, facts, message):
    """A header that cannot be understood names the fact, the keyword and the place."""
    with pytest.raises(InputError, match=message):
        read_raw(written_with(path, **facts), CAMERA)


def test_a_missing_band_is_none(path):
    """Biases and darks have no filter: the band says so instead of failing."""
    assert read_raw(written_with(path, FILTER=None, IMGTYPE="BIAS"), CAMERA).info.band == "none"


@pytest.mark.parametrize("compress", [False, True])
def test_headers_alone_tell_the_same(written, compress):
    """Who, when and what is known without reading pixels, plain or gzipped."""
    if compress:
        written.write_bytes(gzip.compress(written.read_bytes(), compresslevel=1))
    assert read_info(written, CAMERA) == read_raw(written, CAMERA).info


def test_headers_alone_fail_the_same(written, path):
    """A missing file, one that is no FITS, a cut gzip and another camera are the errors of a full read."""
    with pytest.raises(FileError, match=r"no such file \[file .*absent\.fits\]"):
        read_info(path.with_name("absent.fits"), CAMERA)
    with pytest.raises(InputError, match=r"wrong camera.*frame\.fits"):
        read_info(written, load_camera("lsstcam"))
    for content in (b"", b"hello", gzip.compress(written.read_bytes(), compresslevel=1)[:100]):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"not a readable FITS file.*frame\.fits"):
            read_info(path, CAMERA)
