"""Images of integers in tiles compressed by Rice or gzip, decoded here: many HDUs at once, on all threads, into one array.

What astropy does tile after tile in one thread. Any other image (other compressions, scaled, of real numbers, with
blanks) is left to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from nightstream.errors import FileError, InputError
from nightstream.io.fits_file import FitsFile
from nightstream.io.gzip_tiles import GzipTiles, decode_gzip, packed_bytes
from nightstream.kernels.rice import RiceTiles, decode_rice

RICE, GZIP = ("RICE_1", "RICE_ONE"), ("GZIP_1", "GZIP_2")
DECODERS = {RiceTiles: decode_rice, GzipTiles: decode_gzip}
KINDS = {(8, 0): np.int32, (16, 0): np.int32, (16, 32768): np.uint16, (32, 0): np.int32}  # of BITPIX and BZERO
DESCRIPTORS = {8: ">i4", 16: ">i8"}  # by width: number of bytes, and where in the heap
VALUES = ("ZBLANK", "ZSCALE", "ZZERO", "ZQUANTIZ")  # what makes pixels of more than their integers


class CompressedImage(NamedTuple):
    """One compressed image; n tiles of whole rows."""

    shape: tuple[int, int]  # (ny, nx)
    dtype: type  # uint16, or int32 for all other integers
    zero: int  # added to what is decoded
    tiles: RiceTiles | GzipTiles  # placed as if the image were alone


def compressed_image(file: FitsFile, index: int) -> CompressedImage | None:
    """Return what is needed to decode HDU ``index``; None for what is left to astropy.

    Raises FileError when a tile lies outside of the file.
    """
    where = file.hdus.fileinfo(index)
    header = Header.fromstring(file.stored[where["hdrLoc"] : where["datLoc"]].tobytes())
    if not _is_plain(header):
        return None
    tiles = _tiles(header, _places(file.stored, header, where["datLoc"], index))
    if tiles is None:
        return None
    zero = header.get("BZERO", 0)
    return CompressedImage((header["ZNAXIS2"], header["ZNAXIS1"]), KINDS[header["ZBITPIX"], zero], int(zero), tiles)


def _is_plain(header: Header) -> bool:
    """Is it an image of integers that mean themselves, in tiles of whole rows, every one compressed?"""
    ny, nx, rows = header.get("ZNAXIS2", 0), header.get("ZNAXIS1", 0), header.get("ZTILE2", 1)
    return (
        header.get("ZNAXIS") == 2 and header.get("ZTILE1", nx) == nx and rows > 0
        and header.get("TFIELDS") == 1 and header.get("NAXIS1") in DESCRIPTORS and header.get("NAXIS2") == -(-ny // rows)
        and (header.get("ZBITPIX"), header.get("BZERO", 0)) in KINDS and header.get("BSCALE", 1) == 1
        and not any(key in header for key in VALUES)
    )  # fmt: skip


def _places(stored: np.ndarray, header: Header, data: int, index: int) -> tuple[np.ndarray, ...]:
    """The first five of what tiles of either kind are; ``data`` is where the HDU's table begins."""
    ny, nx, rows = header["ZNAXIS2"], header["ZNAXIS1"], header.get("ZTILE2", 1)
    n, width = header["NAXIS2"], header["NAXIS1"]
    table = np.frombuffer(stored, DESCRIPTORS[width], 2 * n, data).reshape(n, 2).astype(np.int64)
    length, start = table[:, 0].copy(), table[:, 1] + data + header.get("THEAP", n * width)
    if (length < 0).any() or (start < 0).any() or (start + length > len(stored)).any():
        raise FileError(f"tiles of HDU {index} lie outside of the file of {len(stored)} bytes")
    place = np.arange(n, dtype=np.int64) * rows * nx
    return stored, start, length, place, np.minimum(rows * nx, ny * nx - place)


def _tiles(header: Header, places: tuple[np.ndarray, ...]) -> RiceTiles | GzipTiles | None:
    """The tiles as their decoder wants them; None for other compressions, parameters and sizes of integers."""
    compression = header.get("ZCMPTYPE")
    if compression in RICE:
        options = {header.get(f"ZNAME{i}"): header.get(f"ZVAL{i}") for i in range(1, 10)}
        tiles = RiceTiles(*places, options.get("BYTEPIX", 4), options.get("BLOCKSIZE", 32))
        return tiles if tiles.pixel_bytes in (1, 2, 4) and tiles.block_pix > 0 else None
    if compression in GZIP:
        tiles = GzipTiles(*places, header["ZBITPIX"] // 8, compression == "GZIP_2")
        return tiles if (packed_bytes(tiles) == tiles.count * tiles.pixel_bytes).all() else None
    return None


def are_alike(images: list[CompressedImage | None]) -> bool:
    """Can they be decoded as one stack?"""
    kinds = {image and (image.shape, image.dtype, image.zero, type(image.tiles), *image.tiles[5:]) for image in images}
    return len(kinds) == 1 and None not in kinds


def decode_stack(images: list[CompressedImage], out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode images that `are_alike`: return (n, ny, nx) pixels of their dtype, and (n,) bool, which are whole.

    ``out``, where given, takes the pixels and is returned: memory that is page-locked, say. Raises InputError where it is
    not C-contiguous or of another shape or dtype.
    """
    shape, dtype, zero, first = images[0]
    wanted = (len(images), *shape)
    if out is None:
        out = np.empty(wanted, dtype)
    elif (out.shape, out.dtype, out.flags.c_contiguous) != (wanted, dtype, True):
        raise InputError(f"out: got {out.dtype} {out.shape}, wanted C-contiguous {np.dtype(dtype)} {wanted}")
    place = [image.tiles.place + i * out[0].size for i, image in enumerate(images)]
    joined = {name: np.concatenate([getattr(image.tiles, name) for image in images]) for name in ("start", "length", "count")}
    tiles = first._replace(place=np.concatenate(place), **joined)
    whole = DECODERS[type(tiles)](tiles, zero, out.reshape(-1))
    return out, whole.reshape(len(images), -1).all(axis=1)
