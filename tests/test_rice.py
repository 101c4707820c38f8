"""Rice-compressed tiles give the bits that were compressed, and damaged ones are told."""

import io

import numpy as np
import pytest
from astropy.io import fits

from nightstream.kernels.rice import RiceTiles, decode_rice

SHAPE = 40, 333


def images(dtype):
    """Noise with spikes, constant rows, and rows that no code can make shorter."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rng = np.random.default_rng(3)
    data = np.clip(rng.normal(high // 3, 20, SHAPE), low, high).astype(dtype)
    data[::7, ::50] = high
    data[3] = 5
    data[5] = rng.integers(low, high, SHAPE[1], dtype=dtype, endpoint=True)
    data[6, ::2], data[6, 1::2] = low, high
    return data


def compressed(data, **options):
    """The tiles of ``data`` as astropy compresses them, and BZERO."""
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, compression_type="RICE_1", **options)]).writeto(file)
    with fits.open(io.BytesIO(file.getvalue()), disable_image_compression=True) as hdus:
        header, where = hdus[1].header, hdus.fileinfo(1)["datLoc"]
    n, stored = header["NAXIS2"], np.frombuffer(file.getvalue(), np.uint8)
    table = np.frombuffer(stored[where : where + 8 * n].tobytes(), ">i4").reshape(n, 2).astype(np.int64)
    pixels = header["ZTILE1"] * header["ZTILE2"]
    place = np.arange(n, dtype=np.int64) * pixels
    count = np.minimum(pixels, data.size - place)
    parameters = {header[f"ZNAME{i}"]: header[f"ZVAL{i}"] for i in (1, 2)}
    start = table[:, 1] + where + header.get("THEAP", 8 * n)
    tiles = RiceTiles(stored, start, table[:, 0].copy(), place, count, parameters["BYTEPIX"], parameters["BLOCKSIZE"])
    return tiles, header.get("BZERO", 0)


def decode(target, tiles, zero, dtype, size):
    out = target.array(np.zeros(size, dtype))
    whole = decode_rice(tiles._replace(**{k: target.array(getattr(tiles, k)) for k in tiles._fields[:5]}), int(zero), out)
    return target.host(out), target.host(whole)


@pytest.mark.parametrize("tile_rows", [1, 7])
@pytest.mark.parametrize(
    ("dtype", "becomes"), [(np.uint16, np.uint16), (np.int16, np.int32), (np.int32, np.int32), (np.uint8, np.int32)]
)
def test_pixels_come_back_bit_for_bit(target, dtype, becomes, tile_rows):
    """All sizes of integers, from one extreme to the other, in tiles of a row and of several."""
    data = images(dtype)
    got, whole = decode(target, *compressed(data, tile_shape=(tile_rows, SHAPE[1])), becomes, data.size)
    assert whole.all()
    np.testing.assert_array_equal(got.reshape(SHAPE), data)


def test_a_shortened_tile_is_told_and_the_others_are_whole(target):
    """Whatever is missing of a tile, down to nothing; its neighbours do not notice."""
    data = images(np.uint16)
    tiles, zero = compressed(data)
    for row, length in ((2, 0), (4, 1), (8, tiles.length[8] // 2), (9, tiles.length[9] - 3)):
        tiles.length[row] = length
    got, whole = decode(target, tiles, zero, np.uint16, data.size)
    np.testing.assert_array_equal(np.flatnonzero(~whole), [2, 4, 8, 9])
    np.testing.assert_array_equal(got.reshape(SHAPE)[whole], data[whole])


@pytest.mark.parametrize("damage", [[0, 0, 0, 0, 0x10], [0, 0, 0, 0, 0xFF]], ids=["endless zeros", "unknown code"])
def test_overwritten_tiles_end_and_are_told(target, damage):
    """Code of nothing but zeros, which would count for ever, and a number of bits that there is not."""
    data = images(np.int32)
    tiles, zero = compressed(data)
    stored = tiles.stored.copy()
    stored[tiles.start[10] : tiles.start[10] + tiles.length[10]] = 0
    stored[tiles.start[10] : tiles.start[10] + len(damage)] = damage
    got, whole = decode(target, tiles._replace(stored=stored), zero, np.int32, data.size)
    np.testing.assert_array_equal(np.flatnonzero(~whole), [10])
    np.testing.assert_array_equal(got.reshape(SHAPE)[whole], data[whole])
