"""Values move between host and device whole, and nothing falls back silently."""

import numpy as np
import pytest

from nightstream.engine.memory import DetectorMemory, count_bytes, resolve_device
from nightstream.engine.values import Calibrations, MaskedImage
from nightstream.errors import DeviceError


def calibrations() -> Calibrations:
    planes = MaskedImage(np.ones((4, 5), np.float32), np.zeros((4, 5), np.int32), np.ones((4, 5), np.float32))
    return Calibrations(detector=3, bias=planes, defects=np.zeros((4, 5), np.int32), provenance={"bias": "b1"})


def test_resident_bytes_count_every_plane():
    """Three bias planes and the defects of 4 x 5 pixels, four bytes each."""
    memory = DetectorMemory("cpu")
    memory.keep(calibrations())
    assert memory.resident_bytes == 4 * 4 * 5 * 4
    assert count_bytes({"a": (np.zeros(3, np.float64), "text", 1)}) == 24


def test_download_keeps_values_and_types():
    """A round trip leaves arrays, text and numbers as they were."""
    memory = DetectorMemory("cpu")
    back = memory.download(memory.upload(calibrations()))
    np.testing.assert_array_equal(back.bias.image, calibrations().bias.image)
    assert back.detector == 3 and back.provenance == {"bias": "b1"} and back.flat is None


def test_a_missing_gpu_is_an_error_only_when_asked_for():
    """ "auto" finds the CPU where there is no card; "gpu" says what is missing."""
    if resolve_device("auto") == "gpu":
        pytest.skip("this machine has a card")
    with pytest.raises(DeviceError, match="a GPU was asked for"):
        resolve_device("gpu")
