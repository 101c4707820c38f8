"""FITS files opened whole, so that whatever is wrong with one is found at once and said in one line."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nightstream.errors import FileError

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

GZIP_MAGIC = b"\x1f\x8b"


class FitsFile(NamedTuple):
    """A FITS file in memory: what astropy makes of it, and its bytes (n,) uint8, gunzipped."""

    hdus: HDUList
    stored: np.ndarray


@contextmanager
def open_fits(path: Path) -> Iterator[FitsFile]:
    """Open a whole FITS file from memory; whatever astropy says of a broken one becomes a FileError."""
    from astropy.io import fits

    data = _file_bytes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # truncation is found by size below; the rest is style of the header
        try:
            hdus = fits.open(io.BytesIO(data), memmap=False)
            end = max(place["datLoc"] + place["datSpan"] for place in map(hdus.fileinfo, range(len(hdus))))
        except (OSError, ValueError, TypeError, fits.VerifyError) as error:
            raise FileError(f"not a readable FITS file: {first_sentence(error)}") from None
        with hdus:
            if end > len(data):
                raise FileError(f"truncated FITS file: got {len(data)} bytes, wanted at least {end}")
            yield FitsFile(hdus, np.frombuffer(data, np.uint8))


def _file_bytes(path: Path) -> bytes:
    """Contents of the file, gunzipped where it is a gzip file."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
    except FileNotFoundError:
        raise FileError("no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"truncated or damaged gzip file: {error}") from None
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from None
    if not data:
        raise FileError("got an empty file, wanted FITS")
    return data


def first_sentence(error: Exception) -> str:
    """What a library says of a broken file, without its advice."""
    return " ".join(str(error).split()).split(". ")[0][:120]
