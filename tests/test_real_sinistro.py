"""A real four-amplifier raw of an LCO Sinistro, in electrons: where its quadrants land and how they join."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import sigma_clip
from realdata import real_data

from nightstream.engine.assembly import assemble_amplifiers
from nightstream.engine.isr import remove_signature
from nightstream.engine.values import Calibrations
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.raw import read_raw
from nightstream.io.sections import parse_section

pytestmark = pytest.mark.real
NAME = "elp1m008-fa05-20211007-0042-e00_mef_raw_2021SO2.fits.gz"
CAMERA = load_camera("sinistro")
DETECTOR = CAMERA.detectors[0]
WINDOW = (1024, 1024)  # x, y of the read window on the whole CCD, 0-based unbinned pixels (CCDSEC [1025:3072, ...])
BINNING = 2


def path():
    return real_data("lco_sinistro_raw") / NAME


@cache
def electrons() -> np.ndarray:
    """The frame through the engine: overscan, gain, assembly."""
    config = engine_config(CAMERA).isr
    return remove_signature(read_raw(path(), CAMERA), DETECTOR, Calibrations(detector=0), config).image


def level(pixels) -> float:
    """Mean of the sky in a strip, stars clipped."""
    return float(sigma_clip(np.ravel(pixels), sigma=2.5, maxiters=20, masked=False).mean())


def strips(image, width=24):
    """Both sides of the four joints between quadrants: (before, after)."""
    halves, before, after = (slice(0, 512), slice(512, 1024)), slice(512 - width, 512), slice(512, 512 + width)
    columns = [(image[half, before], image[half, after]) for half in halves]
    return columns + [(image[before, half], image[after, half]) for half in halves]


def test_quadrants_land_where_detsec_says():
    """For each amplifier, box and mirrors of the camera file follow from DETSEC by arithmetic alone."""
    with fits.open(path()) as hdus:
        for amplifier in DETECTOR.amplifiers:
            box, flip_x, flip_y = parse_section(hdus[amplifier.hdu].header["DETSEC"])
            corner = (box.x0 - WINDOW[0]) // BINNING, (box.y0 - WINDOW[1]) // BINNING
            assert corner == (amplifier.detector.x0, amplifier.detector.y0)
            assert (flip_x, flip_y) == (amplifier.flip_x, amplifier.flip_y)
            assert box.shape == (BINNING * 512, BINNING * 512)


def test_assembly_follows_detsec_pixel_by_pixel():
    """Placing DATASEC by DETSEC in a plain loop over the HDUs gives the same image."""
    expected = np.zeros((1024, 1024), np.uint16)
    with fits.open(path()) as hdus:
        for hdu in hdus[1:]:
            box, flip_x, flip_y = parse_section(hdu.header["DETSEC"])
            source = parse_section(hdu.header["DATASEC"])[0]
            x, y = (box.x0 - WINDOW[0]) // BINNING, (box.y0 - WINDOW[1]) // BINNING
            pixels = hdu.data[source.slices][:: -1 if flip_y else 1, :: -1 if flip_x else 1]
            expected[y : y + 512, x : x + 512] = pixels
    np.testing.assert_array_equal(assemble_amplifiers(read_raw(path(), CAMERA).pixels, DETECTOR), expected)


def test_no_header_section_disagrees(caplog):
    """The boxes of the camera file are those of the headers, so nothing is logged."""
    read_raw(path(), CAMERA)
    assert not caplog.records


def test_no_row_or_column_is_lost_or_doubled_at_the_joints():
    """Every data pixel is on the detector once, none of an overscan is, and neighbours across a joint are different rows."""
    raw = read_raw(path(), CAMERA)
    image = assemble_amplifiers(raw.pixels, DETECTOR)
    np.testing.assert_array_equal(np.sort(image, axis=None), np.sort(raw.pixels[:, :512, :512], axis=None))
    assert (image[511] != image[512]).mean() > 0.9 and (image[:, 511] != image[:, 512]).mean() > 0.9
    assert level(electrons()[505:519]) > 1500  # sky on both sides; a row of overscan would have 0


def test_the_scene_goes_on_across_the_joints():
    """Neighbouring lines resemble each other across a joint as on either side of it; mirrored ones do not.

    A correlation r of n pixels is known to (1 - r^2) / sqrt(n) < 1 / 32, its difference from the mean of two others to
    sqrt(1.5) times that: 4 sigma are 0.15.
    """
    scene = np.arcsinh((electrons() - np.median(electrons())) / 60)  # 1.4 sigma of the sky: no star outweighs all
    for lines in (scene, scene.T):
        beside = (correlation(lines[510], lines[511]) + correlation(lines[512], lines[513])) / 2
        assert correlation(lines[511], lines[512]) == pytest.approx(beside, abs=0.15)
        assert abs(correlation(lines[511], lines[512][::-1])) < 0.15 < beside


def correlation(line_a, line_b) -> float:
    return float(np.corrcoef(line_a, line_b)[0, 1])


def test_steps_across_amplifier_boundaries_are_small():
    """After overscan and gain the sky differs by less than 2 % of itself across each of the four joints."""
    for before, after in strips(electrons()):
        assert abs(level(before) / level(after) - 1) < 0.02


def test_the_header_wcs_points_at_the_target():
    """The field centre is the telescope's pointing, in pixels of the assembled detector, at the published scale."""
    raw = read_raw(path(), CAMERA)
    assert raw.wcs.pixel_scale_arcsec == pytest.approx(0.778, abs=0.001)
    ra, dec = raw.wcs.sky_from_pixel(511.0, 511.0)
    assert (ra, dec) == (pytest.approx(287.3248172), pytest.approx(59.493929))
    assert (raw.info.visit, raw.info.kind, raw.info.band) == (2021100700042, "science", "w")
