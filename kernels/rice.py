"""Rice decoding of FITS tiles: the lossless compression that survey raws come in (FITS standard 4.0, section 10.4.1).

A tile begins with its first pixel, big-endian. Blocks of pixels follow, each with a code for the number of low bits that
its differences keep as they are; what is above is counted in zeros. Differences of either sign are folded to
0, -1, 1, -2, ... as 0, 1, 2, 3, ...
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

LEADING_ZEROS = np.array([8 - int(n).bit_length() for n in range(256)], np.int64)  # of a byte


class RiceTiles(NamedTuple):
    """Where the tiles of one or more images are: n tiles, host or device arrays."""

    stored: Any  # (bytes,) uint8: the file, or what of it holds the tiles
    start: Any  # (n,) int64 first byte of each tile
    length: Any  # (n,) int64 bytes
    place: Any  # (n,) int64 where its first pixel goes in the output
    count: Any  # (n,) int64 pixels
    pixel_bytes: int  # 1, 2 or 4, of the numbers that were compressed
    block_pix: int  # pixels with one code


def decode_rice(tiles: RiceTiles, zero: int, out) -> Any:
    """Write the pixels of all tiles into ``out`` (pixels,), uint16 or int32: the decoded integers plus ``zero``, modulo its
    size. Return (n,) bool: which tiles are whole; what a damaged one leaves in ``out`` has no meaning.

    Two-byte integers are signed, single bytes are not, as in FITS.
    """
    xp = array_module(out)
    whole = xp.empty(len(tiles.start), xp.uint8)
    loop = {"uint16": decode_tiles_uint16, "int32": decode_tiles_int32}[str(out.dtype)]
    numbers = (np.int32(n) for n in (len(tiles.start), tiles.pixel_bytes, tiles.block_pix))
    loop(Launch.over((len(tiles.start),), (64,)), *tiles[:5], *numbers, np.int64(zero), out, whole)
    return whole.astype(bool)


@hot_loop("rice")
def decode_tiles_uint16(stored, start, length, place, count, n, pixel_bytes, block_pix, zero, out, whole):
    """Decode tile after tile to unsigned pixels of 16 bits."""
    for tile in prange(n):
        pixels = out[place[tile] : place[tile] + count[tile]]
        whole[tile] = _decode(stored[start[tile] : start[tile] + length[tile]], pixel_bytes, block_pix, zero, pixels)


@hot_loop("rice")
def decode_tiles_int32(stored, start, length, place, count, n, pixel_bytes, block_pix, zero, out, whole):
    """Decode tile after tile to signed pixels of 32 bits."""
    for tile in prange(n):
        pixels = out[place[tile] : place[tile] + count[tile]]
        whole[tile] = _decode(stored[start[tile] : start[tile] + length[tile]], pixel_bytes, block_pix, zero, pixels)


@device_function
def _decode(code, pixel_bytes, block_pix, zero, out):
    """Decode one tile; return if its code was long enough. ``bits`` holds the next ``have`` bits of the code, uppermost
    first, and zeros."""
    code_bits = 3 if pixel_bytes == 1 else 4 if pixel_bytes == 2 else 5
    plain = 6 if pixel_bytes == 1 else 14 if pixel_bytes == 2 else 25  # code of a block that is not compressed
    width = 8 * pixel_bytes
    if len(code) < pixel_bytes:
        return len(out) == 0
    value, position = np.int64(0), pixel_bytes
    for i in range(pixel_bytes):
        value = (value << 8) | np.int64(code[i])
    bits, have, left = np.uint64(0), 0, 8 * (len(code) - pixel_bytes)  # ``left``: bits of the code not yet used
    for first in range(0, len(out), block_pix):
        last = min(first + block_pix, len(out))
        bits, have, position = _refill(code, bits, have, position)
        kept = np.int64(bits >> np.uint64(64 - code_bits)) - 1
        bits, have, left = bits << np.uint64(code_bits), have - code_bits, left - code_bits
        if kept > plain:
            return False
        for i in range(first, last):
            folded = np.int64(0)
            if kept == plain:
                bits, have, position = _refill(code, bits, have, position)
                folded = np.int64(bits >> np.uint64(64 - width))
                bits, have, left = bits << np.uint64(width), have - width, left - width
            elif kept >= 0:
                zeros = np.int64(0)
                while True:
                    bits, have, position = _refill(code, bits, have, position)
                    some = LEADING_ZEROS[bits >> np.uint64(56)]
                    zeros += some
                    if some < 8:
                        break
                    bits, have = bits << np.uint64(8), have - 8
                    if zeros > left:
                        return False
                used = some + 1
                folded = zeros << kept
                bits, have = bits << np.uint64(used), have - used
                if kept > 0:
                    folded |= np.int64(bits >> np.uint64(64 - kept))
                    bits, have = bits << np.uint64(kept), have - kept
                left -= zeros + 1 + kept
            value += -((folded + 1) >> 1) if folded & 1 else folded >> 1
            out[i] = _as_signed(value, pixel_bytes) + zero
        if left < 0:
            return False
    return True


@device_function
def _refill(code, bits, have, position):
    """Return the reservoir with 33 bits or more, zeros beyond the code's end."""
    if have <= 32:
        if position + 4 <= len(code):
            word = (
                (np.uint64(code[position]) << np.uint64(24))
                | (np.uint64(code[position + 1]) << np.uint64(16))
                | (np.uint64(code[position + 2]) << np.uint64(8))
                | np.uint64(code[position + 3])
            )
            return bits | (word << np.uint64(32 - have)), have + 32, position + 4
        while have <= 56:
            if position < len(code):
                bits |= np.uint64(code[position]) << np.uint64(56 - have)
            position, have = position + 1, have + 8
    return bits, have, position


@device_function
def _as_signed(value, pixel_bytes):
    """The lowest bytes of ``value`` as FITS understands them."""
    if pixel_bytes == 1:
        return value & 0xFF
    if pixel_bytes == 2:
        return ((value & 0xFFFF) ^ 0x8000) - 0x8000
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
