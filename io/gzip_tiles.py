"""Decoding of gzipped FITS tiles: whole numbers, big-endian, byte by byte or first bytes first (FITS standard 4.0, 10.4.2).

Python's threads do not run side by side where every call takes microseconds, as a row of pixels does. A run of tiles is
therefore unpacked in one call, as the members of one gzip file, and looked at tile by tile only if that fails.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nightstream.kernels.target import for_each

TRAILER = 8  # bytes at the end of a gzip stream: its checksum, and how many bytes were packed
RUN_PIX = 2**17  # about as many pixels are unpacked in one call


class GzipTiles(NamedTuple):
    """Where the tiles of one or more images are: n tiles, host arrays."""

    stored: np.ndarray  # (bytes,) uint8: the file, or what of it holds the tiles
    start: np.ndarray  # (n,) int64 first byte of each tile
    length: np.ndarray  # (n,) int64 bytes
    place: np.ndarray  # (n,) int64 where its first pixel goes in the output: where those of the tile before end
    count: np.ndarray  # (n,) int64 pixels
    pixel_bytes: int  # 1, 2 or 4, of the numbers that were compressed
    is_shuffled: bool  # GZIP_2: the first bytes of all numbers, then the second ones, ...


def packed_bytes(tiles: GzipTiles) -> np.ndarray:
    """Return (n,) int64: how many bytes each tile says it holds; 0 for what is too short to be a tile."""
    is_long = tiles.length > TRAILER
    last = np.where(is_long, tiles.start + tiles.length, 4)
    size = np.ascontiguousarray(tiles.stored[last[:, None] - np.arange(4, 0, -1)]).view("<u4")[:, 0]
    return np.where(is_long, size.astype(np.int64), 0)


def decode_gzip(tiles: GzipTiles, zero: int, out: np.ndarray) -> np.ndarray:
    """Write the pixels of all tiles into ``out`` (pixels,), uint16 or int32: the unpacked integers plus ``zero``, modulo its
    size. Return (n,) bool: which tiles are whole; what a damaged one leaves in ``out`` has no meaning.

    Two-byte integers are signed, single bytes are not, as in FITS. Checksums are checked.
    """
    parts = for_each(lambda run: _decode_run(tiles, run, zero, out), _runs(tiles.count), np)
    return np.array([is_whole for part in parts for is_whole in part], bool)


def _runs(count: np.ndarray) -> list[slice]:
    """Tiles that follow each other and are of one size."""
    step = max(1, RUN_PIX // max(1, int(count.max(initial=0))))
    edges = np.unique([*range(0, len(count), step), *(np.flatnonzero(np.diff(count)) + 1), len(count)]).tolist()
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _decode_run(tiles: GzipTiles, run: slice, zero: int, out: np.ndarray) -> list[bool]:
    """Decode tiles of one size together, or one by one if that cannot be done: return which are whole."""
    if _decode(tiles, run, zero, out):
        return [True] * (run.stop - run.start)
    return [_decode(tiles, slice(tile, tile + 1), zero, out) for tile in range(run.start, run.stop)]


def _decode(tiles: GzipTiles, run: slice, zero: int, out: np.ndarray) -> bool:
    """Decode tiles of one size together; return if that could be done."""
    n, count, first = run.stop - run.start, int(tiles.count[run.start]), int(tiles.place[run.start])
    unpacked = _unpacked(tiles, run)
    if unpacked is None or len(unpacked) != n * count * tiles.pixel_bytes:
        return False
    if tiles.is_shuffled:
        unpacked = _unshuffled(unpacked.reshape(n, tiles.pixel_bytes, count))
    pixels = out[first : first + n * count]
    np.copyto(pixels, unpacked.view("u1" if tiles.pixel_bytes == 1 else f">i{tiles.pixel_bytes}"), casting="unsafe")
    if zero:
        pixels += pixels.dtype.type(zero)
    return True


def _unpacked(tiles: GzipTiles, run: slice) -> np.ndarray | None:
    """The bytes that were packed in the tiles, one tile's after the other's; None if a tile is damaged."""
    decompress, problem = _library()
    places = zip(tiles.start[run].tolist(), tiles.length[run].tolist(), strict=True)
    try:
        data = decompress(b"".join([tiles.stored[start : start + length] for start, length in places]))
    except (EOFError, gzip.BadGzipFile, problem):
        return None
    return np.frombuffer(data, np.uint8)


def _library() -> tuple[Callable[[bytes], bytes], type[Exception]]:
    """What unpacks gzip streams that follow each other, ISA-L's where it is installed, and what it raises."""
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        return gzip.decompress, zlib.error
    return igzip.decompress, isal_zlib.error


def _unshuffled(planes: np.ndarray) -> np.ndarray:
    """The bytes of (tiles, bytes, count) numbers, those of each number together."""
    numbers = np.empty((len(planes), planes.shape[2], planes.shape[1]), np.uint8)
    for byte in range(planes.shape[1]):
        numbers[:, :, byte] = planes[:, byte]
    return numbers.reshape(-1)
