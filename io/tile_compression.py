"""Images of integers in Rice-compressed tiles, decoded here: many HDUs at once, on all threads, into one array.

What astropy does tile after tile in one thread. Any other image (other compressions, scaled, of real numbers, with
blanks) is left to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from nightstream.errors import FileError
from nightstream.io.fits_file import FitsFile
from nightstream.kernels.rice import RiceTiles, decode_rice

RICE = ("RICE_1", "RICE_ONE")
KINDS = {(8, 0): np.int32, (16, 0): np.int32, (16, 32768): np.uint16, (32, 0): np.int32}  # of BITPIX and BZERO
DESCRIPTORS = {8: ">i4", 16: ">i8"}  # by width: number of bytes, and where in the heap
VALUES = ("ZBLANK", "ZSCALE", "ZZERO", "ZQUANTIZ")  # what makes pixels of more than their integers


class RiceImage(NamedTuple):
    """One compressed image; n tiles of whole rows."""

    shape: tuple[int, int]  # (ny, nx)
    dtype: type  # uint16, or int32 for all other integers
    zero: int  # added to what is decoded
    tiles: RiceTiles  # placed as if the image were alone


def rice_image(file: FitsFile, index: int) -> RiceImage | None:
    """Return what is needed to decode HDU ``index``; None for what is left to astropy.

    Raises FileError when a tile lies outside of the file.
    """
    where = file.hdus.fileinfo(index)
    header = Header.fromstring(file.stored[where["hdrLoc"] : where["datLoc"]].tobytes())
    zero, bits = header.get("BZERO", 0), header.get("ZBITPIX")
    ny, nx, rows = header.get("ZNAXIS2", 0), header.get("ZNAXIS1", 0), header.get("ZTILE2", 1)
    options = {header.get(f"ZNAME{i}"): header.get(f"ZVAL{i}") for i in range(1, 10)}
    is_ours = (
        header.get("ZCMPTYPE") in RICE and header.get("ZNAXIS") == 2 and header.get("ZTILE1", nx) == nx and rows > 0
        and header.get("TFIELDS") == 1 and header.get("NAXIS1") in DESCRIPTORS and header.get("NAXIS2") == -(-ny // rows)
        and (bits, zero) in KINDS and header.get("BSCALE", 1) == 1 and not any(key in header for key in VALUES)
        and options.get("BYTEPIX", 4) in (1, 2, 4) and options.get("BLOCKSIZE", 32) > 0
    )  # fmt: skip
    if not is_ours:
        return None
    n, width = header["NAXIS2"], header["NAXIS1"]
    table = np.frombuffer(file.stored, DESCRIPTORS[width], 2 * n, where["datLoc"]).reshape(n, 2).astype(np.int64)
    length, start = table[:, 0].copy(), table[:, 1] + where["datLoc"] + header.get("THEAP", n * width)
    if (length < 0).any() or (start < 0).any() or (start + length > len(file.stored)).any():
        raise FileError(f"tiles of HDU {index} lie outside of the file of {len(file.stored)} bytes")
    place = np.arange(n, dtype=np.int64) * rows * nx
    count = np.minimum(rows * nx, ny * nx - place)
    tiles = RiceTiles(file.stored, start, length, place, count, options.get("BYTEPIX", 4), options.get("BLOCKSIZE", 32))
    return RiceImage((ny, nx), KINDS[bits, zero], int(zero), tiles)


def are_alike(images: list[RiceImage | None]) -> bool:
    """Can they be decoded as one stack?"""
    kinds = {image and (image.shape, image.dtype, image.zero, *image.tiles[5:]) for image in images}
    return len(kinds) == 1 and None not in kinds


def decode_stack(images: list[RiceImage]) -> tuple[np.ndarray, np.ndarray]:
    """Decode images that `are_alike`: return (n, ny, nx) pixels of their dtype, and (n,) bool, which are whole."""
    shape, dtype, zero, first = images[0]
    out = np.empty((len(images), *shape), dtype)
    place = [image.tiles.place + i * out[0].size for i, image in enumerate(images)]
    joined = {name: np.concatenate([getattr(image.tiles, name) for image in images]) for name in ("start", "length", "count")}
    tiles = first._replace(place=np.concatenate(place), **joined)
    whole = decode_rice(tiles, zero, out.reshape(-1))
    return out, whole.reshape(len(images), -1).all(axis=1)
