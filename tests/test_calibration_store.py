"""Calibrations and templates come back as they were, and wrong ones are refused by name."""

import dataclasses

import numpy as np
import pytest
from product_scene import SHAPE, assert_same, make_calibrations, make_pixels, make_template

from nightstream.engine.camera import Detector
from nightstream.errors import CalibrationError, FileError, InputError
from nightstream.io.calibrations import calibration_path, read_calibrations, write_calibrations
from nightstream.io.templates import read_template, template_path, write_template


def detector(number=7, shape=SHAPE):
    """Return a detector without amplifiers: the store asks for number and shape only."""
    return Detector(id=number, name="d", shape=shape, amplifiers=())


def test_calibrations_come_back_exactly(tmp_path):
    """All planes are read back bit by bit; those that were None are None."""
    path = write_calibrations(tmp_path, "cam", make_calibrations())
    assert path == tmp_path / "cam" / "detector=007.h5"
    assert_same(read_calibrations(tmp_path, "cam", detector()), make_calibrations())


def test_calibrations_of_nothing(tmp_path):
    """No calibration at all is a valid set, for any shape."""
    empty = dataclasses.replace(make_calibrations(), bias=None, flat=None, defects=None)
    write_calibrations(tmp_path, "cam", empty)
    assert_same(read_calibrations(tmp_path, "cam", detector()), empty)


def test_wrong_calibrations_are_refused(tmp_path):
    """Missing files, another shape, camera or detector: the message says got, wanted and where."""
    path = write_calibrations(tmp_path, "cam", make_calibrations())
    with pytest.raises(CalibrationError, match="no calibrations of detector 8 .*detector 8, file .*detector=008.h5"):
        read_calibrations(tmp_path, "cam", detector(8))
    with pytest.raises(CalibrationError, match=r"shape is \(300, 517\), wanted \(300, 516\) .*detector=007.h5"):
        read_calibrations(tmp_path, "cam", detector(shape=(300, 516)))
    other = calibration_path(tmp_path, "other", 7)
    other.parent.mkdir()
    path.rename(other)
    with pytest.raises(CalibrationError, match="camera is cam, wanted other"):
        read_calibrations(tmp_path, "other", detector())
    other.rename(calibration_path(tmp_path, "other", 9))
    with pytest.raises(CalibrationError, match="wanted other|detector is 7, wanted 9"):
        read_calibrations(tmp_path, "other", detector(9))


def test_calibrations_of_two_shapes_are_not_written(tmp_path):
    """Planes that do not fit each other are refused before a file is made."""
    mixed = dataclasses.replace(make_calibrations(), dark=make_pixels(1, (8, 9)))
    with pytest.raises(CalibrationError, match="one shape"):
        write_calibrations(tmp_path, "cam", mixed)
    assert not list(tmp_path.iterdir())


def test_templates_come_back_exactly(tmp_path):
    """Pixels, WCS, PSF, noise correlation and stars are read back bit by bit."""
    path = write_template(tmp_path, 7, make_template())
    assert path == tmp_path / "band=g" / "detector=007.h5"
    assert_same(read_template(tmp_path, "g", 7), make_template())


def test_bands_with_odd_names(tmp_path):
    """A band such as the one EFOSC2 calls g#782, or one with a slash, stays inside the store."""
    for band in ("g#782", "a/../b"):
        path = write_template(tmp_path, 7, make_template(band))
        assert path.parent.parent == tmp_path
        assert read_template(tmp_path, band, 7).band == band


def test_wrong_templates_are_refused(tmp_path):
    """A missing template and one of another band are told apart."""
    with pytest.raises(FileError, match="no template of detector"):
        read_template(tmp_path, "r", 7)
    path = write_template(tmp_path, 7, make_template())
    wrong = template_path(tmp_path, "r", 7)
    wrong.parent.mkdir()
    path.rename(wrong)
    with pytest.raises(InputError, match=r"\('g', 7\), wanted \('r', 7\)"):
        read_template(tmp_path, "r", 7)


def test_device_arrays_are_brought_home(tmp_path):
    """Arrays that know ``get``, as CuPy's do, are moved to the host on the way to the file."""

    class OnDevice:
        def __init__(self, host):
            self.host, self.shape, self.dtype = host, host.shape, host.dtype

        def get(self):
            return self.host

    host = make_calibrations()
    pixels = [OnDevice(plane) for plane in (host.bias.image, host.bias.mask, host.bias.variance)]
    bias = type(host.bias)(*pixels)
    write_calibrations(tmp_path, "cam", dataclasses.replace(host, bias=bias))
    np.testing.assert_array_equal(read_calibrations(tmp_path, "cam", detector()).bias.image, host.bias.image)
