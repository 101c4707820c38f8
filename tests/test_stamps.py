"""Stamps: the pixels of an image as they are, and NaN with NO_DATA beyond it."""

import numpy as np
import pytest

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.stamps import copy_stamps_reference, gather_stamps, stamp_starts


def scene(shape=(40, 53)):
    """Planes of which no two pixels are alike, one of them NaN."""
    rng = np.random.default_rng(5)
    image, variance = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    image[3, 4] = np.nan
    return image, rng.integers(0, 2**13, shape, dtype=np.int32), variance


BOXES = [np.array(v, np.int32) for v in ([0, -3, 50, 10, -200, 5, 52], [0, 2, 38, -7, 3, 500, 39], [7, 10, 9, 30, 6, 3, 1])]


def gathered(target, planes, boxes, **options):
    out = gather_stamps(*map(target.array, planes), *map(target.array, boxes), **options)
    return tuple(map(target.host, out))


def test_stamps_are_those_of_the_definition(target):
    """Inside, over every border and far off: the same bits as slices of the image, scaled."""
    for scale in (1.0, 2.37):
        out = gathered(target, scene(), BOXES, scale=scale)
        for got, wanted in zip(out, copy_stamps_reference(*scene(), *BOXES, scale=scale), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


def test_a_stamp_lies_where_its_start_says(target):
    """Stamp k is the slice of the image at its box; beyond the image there is NaN, and no plane but NO_DATA."""
    image, mask, variance = scene()
    start = target.host(stamp_starts(target.array(BOXES[2])))
    out_image, out_mask, out_variance = gathered(target, (image, mask, variance), BOXES)
    assert start[-1] == len(out_image) == (BOXES[2].astype(int) ** 2).sum()
    np.testing.assert_array_equal(out_image[start[0] : start[1]].reshape(7, 7), image[:7, :7])
    corner = slice(start[2], start[3])  # two rows and three columns of 9 x 9 are on the image
    off = np.ones((9, 9), dtype=bool)
    off[:2, :3] = False
    np.testing.assert_array_equal(out_mask[corner].reshape(9, 9)[off], int(MaskPlane.NO_DATA))
    np.testing.assert_array_equal(np.isnan(out_image[corner]), off.ravel())
    np.testing.assert_array_equal(np.isnan(out_variance[corner]), off.ravel())


def test_no_stamps_and_no_views_are_trouble(target):
    """An empty list gives empty planes; transposed planes are read as they look."""
    empty = [np.zeros(0, np.int32)] * 3
    assert all(len(plane) == 0 for plane in gathered(target, scene(), empty))
    turned = [plane.T for plane in scene()]
    out = gather_stamps(*(target.array(p).T for p in scene()), *map(target.array, BOXES))
    for got, wanted in zip(out, copy_stamps_reference(*turned, *BOXES), strict=True):
        np.testing.assert_array_equal(target.host(got), wanted)


def test_a_stamp_without_pixels_is_refused():
    """A side of 0 is an error."""
    with pytest.raises(InputError, match="1 pixel wide at least, got 0"):
        gather_stamps(*scene(), *[np.zeros(1, np.int32)] * 3)
