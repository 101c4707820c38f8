"""Cutouts as FITS files, for alerts: a byte template a size, into which positions and big-endian pixels are patched.

| HDU      | holds                                                                                         |
|----------|-----------------------------------------------------------------------------------------------|
| PRIMARY  | image, float32, nJy; a TAN about the source (CRPIX: the source in the stamp); ROTPA           |
| UNCERT   | variance, float32, nJy squared; UTYPE as astropy's CCDData wants it                            |
| MASK     | int16 bits, ``MP_<PLANE>`` their numbers                                                      |
| PSFIMAGE | the PSF at the source, float32, centred on the middle pixel, sum 1                            |
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.values import Array, Cutouts, StampSet
from nightstream.errors import InputError
from nightstream.io.hdf5_values import CUTOUT_KINDS, mask_attributes
from nightstream.io.wcs_cards import card_text
from nightstream.kernels.stamps import stamp_starts
from nightstream.kernels.wcs import Wcs

BLOCK = 2880  # bytes: header and data of an HDU are padded to whole blocks
CARD = 80
VALUE = slice(10, 30)  # columns of a card that hold a number
AT_ONCE = 256  # stamps whose files are made together
STEP_PIX = 4.0  # over which the local WCS is linear

PATCHED = {
    "CRVAL1": "[deg] ra of the source, ICRS",
    "CRVAL2": "[deg] dec of the source",
    "CRPIX1": "[pixel] the source in the stamp, from 1",
    "CRPIX2": "[pixel]",
    "CD1_1": "[deg/pixel]",
    "CD1_2": "[deg/pixel]",
    "CD2_1": "[deg/pixel]",
    "CD2_2": "[deg/pixel]",
    "ROTPA": "[deg] position angle of +y, north through east",
}


def fits_cutouts(cutouts: Cutouts, kind: str, wcs: Wcs, rows: Array | None = None) -> list[bytes]:
    """Return a FITS file for each of ``rows`` (indices; default all) of ``cutouts``, in that order; see `CutoutFiles`."""
    return [bytes(file) for file in CutoutFiles(cutouts, wcs).files(kind, rows)]


class CutoutFiles:
    """The FITS files of one detector's cutouts, to be asked for in any order; what the kinds share is worked out once.

    ``wcs`` is that of the detector, of which every file has the tangent-plane approximation about its source.
    """

    def __init__(self, cutouts: Cutouts, wcs: Wcs) -> None:
        self._cutouts = cutouts
        self._size = to_host(cutouts.size)
        self._start = stamp_starts(self._size)
        self._cards = _card_numbers(_numbers(cutouts, wcs))

    def files(self, kind: str, rows: Array | None = None) -> list[memoryview]:
        """Return the bytes of the file of each of ``rows`` (indices; default all), in that order.

        ``kind`` is "difference", "science" or "template". Raises InputError for another kind or a row that is not there.
        """
        if kind not in CUTOUT_KINDS:
            raise InputError(f"cutouts are of {', '.join(CUTOUT_KINDS)}, got {kind!r}")
        n = len(self._size)
        rows = np.arange(n) if rows is None else np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < n):
            raise InputError(f"there are {n} cutouts, got row {rows.max() if rows.min() >= 0 else rows.min()}")
        files: list[memoryview] = [memoryview(b"")] * len(rows)
        size, stamps = self._size[rows], getattr(self._cutouts, kind)
        for side in np.unique(size):
            of_size = np.flatnonzero(size == side)
            for chosen in np.split(of_size, range(AT_ONCE, len(of_size), AT_ONCE)):
                made = _files(stamps, int(side), self._start[rows[chosen]], rows[chosen], self._cards[:, rows[chosen]])
                for k, file in zip(chosen.tolist(), made, strict=True):
                    files[k] = file.data
        return files


def local_tan(wcs: Wcs, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ra (n,), dec (n,), cd (n, 2, 2)): the TAN (deg, deg / pixel) that touches ``wcs`` at each of x, y (n,)."""
    ra, dec = wcs.sky_from_pixel(x, y)
    columns = []
    for dx, dy in ((STEP_PIX, 0.0), (0.0, STEP_PIX)):
        after, before = (_tangent_plane(ra, dec, *wcs.sky_from_pixel(x + s * dx, y + s * dy)) for s in (1, -1))
        columns.append((after - before) / (2 * STEP_PIX))
    return ra, dec, np.stack(columns, axis=2)


def _tangent_plane(ra, dec, ra_to, dec_to) -> np.ndarray:
    """Return (n, 2) deg: gnomonic coordinates of one position about another (Calabretta & Greisen 2002, eq. 54)."""
    dra, dec, dec_to = np.radians(ra_to - ra), np.radians(dec), np.radians(dec_to)
    depth = np.sin(dec_to) * np.sin(dec) + np.cos(dec_to) * np.cos(dec) * np.cos(dra)
    east = np.cos(dec_to) * np.sin(dra)
    north = np.sin(dec_to) * np.cos(dec) - np.cos(dec_to) * np.sin(dec) * np.cos(dra)
    return np.degrees(np.stack([east / depth, north / depth], axis=1))


def _numbers(cutouts: Cutouts, wcs: Wcs) -> np.ndarray:
    """Return (n, 9) float64: the values of the cards `PATCHED`. A source that is nowhere gets the detector's own TAN."""
    x, y = (to_host(v).astype(np.float64) for v in (cutouts.x, cutouts.y))
    x, y = (np.where(np.isfinite(v), v, centre) for v, centre in zip((x, y), wcs.crpix, strict=True))
    ra, dec, cd = local_tan(wcs, x, y)
    crpix = [v - to_host(first) + 1.0 for v, first in ((x, cutouts.x0), (y, cutouts.y0))]
    angle = np.degrees(np.arctan2(cd[:, 0, 1], cd[:, 1, 1])) % 360.0
    return np.column_stack([ra, dec, *crpix, cd.reshape(-1, 4), angle])


def _files(stamps: StampSet, side: int, start: np.ndarray, rows: np.ndarray, cards: np.ndarray) -> np.ndarray:
    """Return (n, length) uint8: the files of stamps of one size."""
    psf = to_host(stamps.psf[rows]).reshape(len(rows), -1)
    template = _template(side, stamps.psf.shape[1])
    files = np.repeat(template.file[None], len(rows), axis=0)
    for card, text in enumerate(cards):
        at = template.first_card + card * CARD
        files[:, at + VALUE.start : at + VALUE.stop] = text
    pixel = start[:, None] + np.arange(side**2)
    planes = (to_host(plane)[pixel] for plane in (stamps.image, stamps.variance, stamps.mask))
    for at, plane, dtype in zip(template.data, (*planes, psf), (">f4", ">f4", ">i2", ">f4"), strict=True):
        as_bytes = plane.astype(dtype).view(np.uint8)
        files[:, at : at + as_bytes.shape[1]] = as_bytes
    return files


def _card_numbers(numbers: np.ndarray) -> np.ndarray:
    """Return (9, n, 20) uint8: the numbers as FITS wants them, 14 digits."""
    text = "".join("%20.13E" * numbers.shape[1] % tuple(row) for row in numbers.tolist())
    return np.frombuffer(text.encode("ascii"), np.uint8).reshape(*numbers.shape, 20).transpose(1, 0, 2)


class _Template(NamedTuple):
    file: np.ndarray  # (length,) uint8, with zeros for pixels
    first_card: int  # byte where the patched cards begin
    data: tuple[int, ...]  # bytes where the pixels of each HDU begin


@functools.lru_cache(maxsize=256)
def _template(side: int, psf_size: int) -> _Template:
    hdus = _headers(side, psf_size)
    parts, data = [], []
    for header, n_bytes in hdus:
        parts.append(_padded("".join(header + [f"{'END':<{CARD}}"]).encode("ascii"), b" "))
        data.append(sum(map(len, parts)))
        parts.append(_padded(b"\0" * n_bytes, b"\0"))
    file = b"".join(parts)
    return _Template(np.frombuffer(file, np.uint8), file.index(b"CRVAL1  ="), tuple(data))


def _headers(side: int, psf_size: int) -> list[tuple[list[str], int]]:
    """Return (cards, bytes of pixels) of every HDU."""
    primary = [("SIMPLE", True, "FITS"), *_array(-32, side), ("EXTEND", True, "extensions follow"), ("BUNIT", "nJy", "")]
    primary += [("WCSAXES", 2, ""), ("CTYPE1", "RA---TAN", ""), ("CTYPE2", "DEC--TAN", "")]
    primary += [("CUNIT1", "deg", ""), ("CUNIT2", "deg", "")]
    primary += [(name, 0.0, comment) for name, comment in PATCHED.items()]
    primary += [("LONPOLE", 180.0, "[deg]"), ("RADESYS", "ICRS", "celestial frame")]
    variance = _extension("UNCERT", -32, side) + [("BUNIT", "nJy2", ""), ("UTYPE", "VarianceUncertainty", "")]
    planes = [_plane_card(name, bit) for name, bit in mask_attributes().items()]
    return [
        (_cards(primary), 4 * side**2),
        (_cards(variance), 4 * side**2),
        (_cards(_extension("MASK", 16, side)) + planes, 2 * side**2),
        (_cards(_extension("PSFIMAGE", -32, psf_size)), 4 * psf_size**2),
    ]


def _extension(name: str, bitpix: int, side: int) -> list[tuple]:
    group = [("PCOUNT", 0, ""), ("GCOUNT", 1, ""), ("EXTNAME", name, "")]
    return [("XTENSION", "IMAGE", "image"), *_array(bitpix, side), *group]


def _array(bitpix: int, side: int) -> list[tuple]:
    return [
        ("BITPIX", bitpix, "bits of a pixel"),
        ("NAXIS", 2, ""),
        ("NAXIS1", side, ""),
        ("NAXIS2", side, ""),
    ]


def _cards(cards: list[tuple]) -> list[str]:
    return [card_text(*card) for card in cards]


def _plane_card(name: str, bit: int) -> str:
    """Return a card with the number of a mask plane; names beyond 8 characters go by the HIERARCH convention."""
    if len(name) <= 8:
        return card_text(name, bit, "bit number")
    return f"HIERARCH {name} = {bit} / bit number".ljust(CARD)


def _padded(content: bytes, fill: bytes) -> bytes:
    return content + fill * (-len(content) % BLOCK)
