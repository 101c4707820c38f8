"""Pixel flags: what the mask says near a source."""

import numpy as np

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.pixel_flags import FLAGGED_PLANES, pixel_flags


def flags(target, mask, x, y, half_size=4):
    out = pixel_flags(target.array(mask), target.array(x), target.array(y), half_size=half_size)
    return {name: target.host(column) for name, column in out.items()}


def test_each_plane_is_seen_near_and_at_the_centre(target):
    """A pixel 4 away sets the flag of its plane alone; one 1 away also its centre flag; one 5 away
    nothing."""
    for name, plane in FLAGGED_PLANES.items():
        mask = np.zeros((41, 41), np.int32)
        mask[20, 20] = int(plane)
        out = flags(target, mask, np.array([24.0, 21.0, 25.0]), np.array([20.0, 19.3, 20.0]))
        np.testing.assert_array_equal(out[name], [True, True, False])
        np.testing.assert_array_equal(out[f"{name}_center"], [False, True, False])
        assert not any(out[other].any() for other in FLAGGED_PLANES if other != name)


def test_edge_and_offimage(target):
    """A box over the border sets edge; a centre off the image sets offimage and nothing else."""
    mask = np.full((30, 30), int(MaskPlane.BAD), np.int32)
    out = flags(target, mask, np.array([15.0, 2.0, -1.0, np.nan]), np.array([15.0, 15.0, 15.0, 15.0]))
    np.testing.assert_array_equal(out["edge"], [False, True, False, False])
    np.testing.assert_array_equal(out["offimage"], [False, False, True, True])
    np.testing.assert_array_equal(out["bad"], [True, True, False, False])


def test_no_sources(target):
    """An empty list gives empty columns."""
    out = flags(target, np.zeros((9, 9), np.int32), np.zeros(0), np.zeros(0))
    assert all(len(column) == 0 for column in out.values())
