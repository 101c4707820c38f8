"""Gzipped tiles give the bits that were compressed, and damaged ones are told."""

import gzip
import sys

import numpy as np
import pytest
from astropy.io import fits

from nightstream.errors import InputError
from nightstream.io import gzip_tiles
from nightstream.io.fits_file import open_fits
from nightstream.io.tile_compression import are_alike, compressed_image, decode_stack

SHAPE = 40, 333
BOTH = pytest.mark.parametrize("compression", ["GZIP_1", "GZIP_2"])


def image(dtype, seed=3):
    """Noise with spikes, constant rows, and rows that no code can make shorter."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rng = np.random.default_rng(seed)
    data = np.clip(rng.normal(high // 3, 20, SHAPE), low, high).astype(dtype)
    data[::7, ::50] = high
    data[3] = 5
    data[5] = rng.integers(low, high, SHAPE[1], dtype=dtype, endpoint=True)
    data[6, ::2], data[6, 1::2] = low, high
    return data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiles.fits"


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """What unpacks the tiles."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")


def write(path, images, compression, tile_rows=1):
    """The images as astropy compresses them."""
    hdus = [fits.CompImageHDU(data, compression_type=compression, tile_shape=(tile_rows, SHAPE[1])) for data in images]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)


def write_tiles(path, tiles, compression, bits, descriptor="P", **others):
    """An image of ``bits`` in the given tiles of a row each; ``others``: format and tiles of further columns."""
    columns = {"COMPRESSED_DATA": (f"{descriptor}B()", tiles)} | others
    table = fits.BinTableHDU.from_columns([fits.Column(name, form, array=rows(tiles)) for name, (form, tiles) in columns.items()])
    cards = {"ZIMAGE": True, "ZCMPTYPE": compression, "ZBITPIX": bits, "ZNAXIS": 2, "ZNAXIS1": SHAPE[1], "ZNAXIS2": SHAPE[0]}
    table.header.update(cards | {"ZTILE1": SHAPE[1], "ZTILE2": 1})
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


def rows(tiles):
    """Bytes, or pixels as they are, as a column of rows of any length."""
    return np.fromiter((np.frombuffer(tile, np.uint8) if isinstance(tile, bytes) else tile for tile in tiles), object, len(tiles))


def packed(row, compression):
    """A row of pixels as a gzipped tile."""
    big = row.astype(row.dtype.newbyteorder(">"))
    return gzip.compress(big.view(np.uint8).reshape(len(row), -1).T.tobytes() if compression == "GZIP_2" else big.tobytes())


def decoded(path):
    """All images of a file, and which are whole."""
    with open_fits(path) as file:
        images = [compressed_image(file, index) for index in range(1, len(file.hdus))]
    assert are_alike(images)
    return decode_stack(images)


def left_to_astropy(path):
    """What astropy reads of an image that is not decoded here."""
    with open_fits(path) as file:
        assert compressed_image(file, 1) is None
        return file.hdus[1].data


@BOTH
@pytest.mark.parametrize("tile_rows", [1, 7, 40])
@pytest.mark.parametrize(
    ("dtype", "becomes"), [(np.uint16, np.uint16), (np.int16, np.int32), (np.int32, np.int32), (np.uint8, np.int32)]
)
def test_pixels_come_back_bit_for_bit(path, compression, dtype, becomes, tile_rows):
    """All sizes of integers, from one extreme to the other, in tiles of a row, of several, and of the image."""
    images = [image(dtype, seed) for seed in range(3)]
    write(path, images, compression, tile_rows)
    pixels, whole = decoded(path)
    assert whole.all() and pixels.dtype == becomes
    np.testing.assert_array_equal(pixels, images)


@BOTH
@pytest.mark.parametrize("run_pix", [1, 1000, 5000])
def test_the_length_of_runs_does_not_matter(path, monkeypatch, compression, run_pix):
    """Tiles unpacked one by one, a few at a time, and with a shorter last one among them."""
    monkeypatch.setattr(gzip_tiles, "RUN_PIX", run_pix)
    images = [image(np.int32, seed) for seed in range(3)]
    write(path, images, compression, tile_rows=3)
    np.testing.assert_array_equal(decoded(path)[0], images)


@BOTH
def test_with_and_without_isal_the_pixels_are_the_same(library, path, compression):
    """Python's own gzip is used where the fast library is missing."""
    write(path, [image(np.uint16)], compression, tile_rows=7)
    np.testing.assert_array_equal(decoded(path)[0], [image(np.uint16)])


@BOTH
@pytest.mark.parametrize("descriptor", ["P", "Q"])
def test_places_of_tiles_have_32_or_64_bits(path, compression, descriptor):
    """Either width, as astropy reads it too."""
    data = image(np.int32)
    write_tiles(path, [packed(row, compression) for row in data], compression, 32, descriptor)
    np.testing.assert_array_equal(decoded(path)[0], [data])
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(hdus[1].data, data)


@BOTH
def test_damaged_tiles_are_told_and_the_others_are_whole(library, path, compression):
    """Whatever is missing of a tile, down to nothing, and a byte that was overwritten; their neighbours do not notice."""
    data = image(np.int32)
    write(path, [data], compression)
    with open_fits(path) as file:
        tiles = compressed_image(file, 1).tiles
    tiles = tiles._replace(stored=tiles.stored.copy())
    for row, length in ((2, 0), (4, 1), (8, tiles.length[8] // 2), (9, tiles.length[9] - 3)):
        tiles.length[row] = length
    tiles.stored[tiles.start[30] + 25] ^= 0xFF
    out = np.zeros(data.size, np.int32)
    whole = gzip_tiles.decode_gzip(tiles, 0, out)
    np.testing.assert_array_equal(np.flatnonzero(~whole), [2, 4, 8, 9, 30])
    np.testing.assert_array_equal(out.reshape(SHAPE)[whole], data[whole])


@BOTH
def test_integers_wider_than_the_images_are_left_to_astropy(path, compression):
    """Four bytes a pixel in an image of two, as some programs write."""
    data = image(np.int16)
    write_tiles(path, [packed(row.astype(np.int32), compression) for row in data], compression, 16)
    np.testing.assert_array_equal(left_to_astropy(path), data)


@BOTH
@pytest.mark.parametrize("column", ["UNCOMPRESSED_DATA", "GZIP_COMPRESSED_DATA"])
def test_tiles_in_another_column_are_left_to_astropy(path, compression, column):
    """Every other tile as it is, or always as GZIP_1 packs it."""
    data = image(np.int32)
    tiles = [packed(row, compression) if n % 2 else b"" for n, row in enumerate(data)]
    form = "PJ()" if column == "UNCOMPRESSED_DATA" else "PB()"
    plain = [b"" if n % 2 else row if form == "PJ()" else packed(row, "GZIP_1") for n, row in enumerate(data)]
    write_tiles(path, tiles, compression, 32, **{column: (form, plain)})
    np.testing.assert_array_equal(left_to_astropy(path), data)


@BOTH
def test_tiles_of_parts_of_rows_are_left_to_astropy(path, compression):
    """Tiles of 10 x 100 pixels, narrower ones at the edge among them."""
    data = image(np.int32)
    hdu = fits.CompImageHDU(data, compression_type=compression, tile_shape=(10, 100))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    np.testing.assert_array_equal(left_to_astropy(path), data)


def test_gzip_and_rice_are_not_decoded_as_one_stack(path):
    """Images that differ in nothing but their compression are not alike; nor are the two kinds of gzip."""
    kinds = ["GZIP_1", "GZIP_2", "RICE_1"]
    fits.HDUList([fits.PrimaryHDU(), *(fits.CompImageHDU(image(np.int32), compression_type=kind) for kind in kinds)]).writeto(
        path
    )
    with open_fits(path) as file:
        one, two, rice = (compressed_image(file, index) for index in (1, 2, 3))
    assert are_alike([one, one]) and not are_alike([one, two]) and not are_alike([one, rice])


@pytest.mark.parametrize("compression", ["GZIP_1", "GZIP_2", "RICE_1"])
def test_pixels_go_where_they_are_wanted(path, compression):
    """An array that is handed in is filled and returned."""
    write(path, [image(np.int32)], compression)
    with open_fits(path) as file:
        images = [compressed_image(file, 1)]
    out = np.zeros((1, *SHAPE), np.int32)
    assert decode_stack(images, out)[0] is out
    np.testing.assert_array_equal(out[0], image(np.int32))


@pytest.mark.parametrize(
    "out", [np.zeros((1, 40, 332), np.int32), np.zeros((1, *SHAPE), np.uint16), np.zeros((1, 40, 666), np.int32)[:, :, ::2]]
)
def test_an_array_that_does_not_fit_says_got_and_wanted(path, out):
    """Another shape, another type, and pixels that are not side by side."""
    write(path, [image(np.int32)], "GZIP_1")
    with open_fits(path) as file, pytest.raises(InputError, match=r"out: got u?int.*wanted C-contiguous int32 \(1, 40, 333\)"):
        decode_stack([compressed_image(file, 1)], out)
