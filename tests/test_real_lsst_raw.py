"""Real LSSTCam raws with the assembled answer of the observatory's own software."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from realdata import real_data

from nightstream.engine.assembly import assemble_amplifiers
from nightstream.engine.isr import remove_signature
from nightstream.engine.values import Calibrations
from nightstream.errors import InputError
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.raw import read_raw

pytestmark = pytest.mark.real
CAMERA = load_camera("lsstcam")
SPOTS = {"itl": ("R02_S02", 3019110102212), "e2v": ("R22_S11", 3019103101985)}


def spot(vendor):
    """The raw frame, its detector and the expected image."""
    folder = real_data("lsst_raw_format")
    raw = read_raw(folder / f"{vendor}_spot.fits.gz", CAMERA)
    expected = fits.getdata(folder / f"{vendor}_expected_assembled.fits.gz")
    return raw, CAMERA.detectors[raw.info.detector], expected


@pytest.mark.parametrize("vendor", SPOTS)
def test_spots_assemble_bit_exactly(vendor):
    """All 16 million pixels of both vendors' detectors land where the observatory's software puts them."""
    raw, detector, expected = spot(vendor)
    image = assemble_amplifiers(raw.pixels, detector)
    assert image.shape == expected.shape and expected.sum() > 300_000
    np.testing.assert_array_equal(image, expected)


def test_signature_removal_assembles_the_same():
    """With a serial overscan of 0 and no calibrations, the engine's image over the gain is the expected one.

    To float32 rounding. The spots of this frame reach into the parallel overscan, which therefore stays out.
    """
    raw, detector, expected = spot("itl")
    config = engine_config(CAMERA, {"isr": {"parallel_overscan": False}}).isr
    image = remove_signature(raw, detector, Calibrations(detector=detector.id), config).image
    assert np.abs(image / np.float32(detector.amplifiers[0].gain) - expected).max() < 2 * np.finfo(np.float32).eps


@pytest.mark.parametrize("vendor", SPOTS)
def test_headers_are_understood(vendor):
    """Visit, detector and times of the test-stand frames: the trigger they give is the end of the exposure."""
    info = spot(vendor)[0].info
    assert (CAMERA.detectors[info.detector].name, info.visit) == SPOTS[vendor]
    header = fits.Header.fromstring(info.header, sep="\n")
    middle = header["MJD-OBS"] + (37 - header["EXPTIME"] / 2) / 86400  # TAI - UTC was 37 s
    assert info.midpoint_mjd_tai == pytest.approx(middle, abs=1e-8)  # DATE-OBS is cut to 1 ms = 1.2e-8 d
    assert info.dark_time_s > info.exposure_time_s > 0


@pytest.mark.parametrize(
    ("name", "visit", "detector"),
    [("3019032200002-R10-S22-det035", 3019032200002, 35), ("30211212000310-R22-S22-det098", 3021121200310, 98)],
)
def test_identity_agrees_with_the_file_name(name, visit, detector):
    """Visit and detector from the header are the ones that the observatory wrote into the name of the file."""
    info = read_raw(real_data("lsst_raw_format") / "zero_pixel_headers" / f"{name}.fits.gz", CAMERA).info
    assert (info.visit, info.detector, info.kind, info.band) == (visit, detector, "flat", "i")


@pytest.mark.parametrize("name", ["3018092000065-det000", "3019053000001-R22-S00-det000", "CC_S_20240404_000780_R22_S01"])
def test_frames_of_its_sister_cameras_are_refused(name):
    """LATISS, ComCam and simulated ComCam share the format but are other cameras."""
    with pytest.raises(InputError, match="wrong camera: got INSTRUME .*zero_pixel_headers"):
        read_raw(real_data("lsst_raw_format") / "zero_pixel_headers" / f"{name}.fits.gz", CAMERA)
