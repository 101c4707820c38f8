"""Raw FITS files as `RawDetector` values: plain, gzipped or tile compressed. A broken file is one clear error."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nightstream.engine.assembly import raw_from_detector
from nightstream.engine.camera import Amplifier, Detector
from nightstream.engine.values import ExposureInfo, RawDetector
from nightstream.errors import FileError, InputError, NightstreamError
from nightstream.io.cameras import RawCamera
from nightstream.io.fits_file import FitsFile, first_sentence, open_fits
from nightstream.io.header import check_camera, exposure_info, find_detector, read_visit
from nightstream.io.sections import section_disagreements
from nightstream.io.tile_compression import are_alike, compressed_image, decode_stack
from nightstream.io.wcs_cards import wcs_from_header
from nightstream.kernels.wcs import Wcs

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header

logger = logging.getLogger(__name__)

NATIVE = {
    "u1": "i4",
    "i2": "i4",
    "u2": "u2",
    "i4": "i4",
    "f4": "f4",
    "f8": "f4",
}  # kind and size on disk: in memory


Allocate = Callable[[tuple[int, ...], Any], np.ndarray]  # of a shape and dtype, not filled


def read_raw(
    path: str | Path, camera: RawCamera, detector_id: int | None = None, *, allocate: Allocate = np.empty
) -> RawDetector:
    """Read one detector exposure.

    The pixels are (n_amplifiers, ny, nx), C-contiguous, native byte order, uint16, int32 or float32, in adu
    with overscan. Geometry comes from ``camera``; header sections that say otherwise are logged. The WCS is the
    header's, approximate, on the assembled detector; None if there is none, or the exposure is no science one.
    ``detector_id``, where given, must be the detector of the file. ``allocate`` makes the array that the pixels are
    decoded into.

    Raises FileError for a file that is missing, empty, truncated or no FITS, InputError for another camera or
    detector, missing or misshapen amplifiers, unusable headers and pixels that are not finite; all name file,
    visit and detector as far as they are known.
    """
    path = Path(path)
    try:
        with open_fits(path) as file:
            return _read(file, path, camera, detector_id, allocate)
    except NightstreamError as error:
        error.locate(path=str(path), detector=detector_id)
        raise


def read_info(path: str | Path, camera: RawCamera) -> ExposureInfo:
    """Read who, when and what a raw file is, from its headers alone. Errors as those of `read_raw`."""
    with _headers(path) as hdus:
        header = _facts(hdus, camera)
        check_camera(header, camera.name, camera.headers)
        detector = find_detector(header, camera, camera.headers)
        return exposure_info(header, camera, camera.headers, detector.id, str(path))


def read_pointing(path: str | Path, camera: RawCamera) -> Wcs | None:
    """Read where the assembled detector points; None if the headers do not know. Errors as those of `read_raw`."""
    with _headers(path) as hdus:
        header = _facts(hdus, camera)
        return _detector_wcs(header, camera, find_detector(header, camera, camera.headers))


@contextmanager
def _headers(path: str | Path) -> Iterator[HDUList]:
    """Open a FITS file for its headers alone; whatever is wrong with it becomes an error that names it."""
    from astropy.io import fits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the pixels is found when they are read
            with fits.open(path, lazy_load_hdus=True) as hdus:
                yield hdus
    except FileNotFoundError:
        raise FileError("no such file", path=str(path)) from None
    except NightstreamError as error:
        raise error.locate(path=str(path)) from None
    except (OSError, ValueError, TypeError, EOFError, zlib.error, fits.VerifyError) as error:
        raise FileError(f"not a readable FITS file: {first_sentence(error)}", path=str(path)) from None


def _read(file: FitsFile, path: Path, camera: RawCamera, detector_id: int | None, allocate: Allocate) -> RawDetector:
    header = _facts(file.hdus, camera)
    check_camera(header, camera.name, camera.headers)
    visit = read_visit(header, camera.headers)
    try:
        detector = find_detector(header, camera, camera.headers)
        if detector_id not in (None, detector.id):
            raise InputError(f"got detector {detector.id} in the header, wanted {detector_id}")
        return _read_detector(file, header, path, camera, detector, allocate)
    except NightstreamError as error:
        error.locate(visit=visit)
        raise


def _read_detector(
    file: FitsFile, header: Header, path: Path, camera: RawCamera, detector: Detector, allocate: Allocate
) -> RawDetector:
    try:
        info = exposure_info(header, camera, camera.headers, detector.id, str(path))
        stack = _read_stack(file, detector, allocate)
        wcs = _detector_wcs(header, camera, detector) if info.kind == "science" else None
    except NightstreamError as error:
        error.locate(detector=detector.id)
        raise
    problems = [p for amp in detector.amplifiers for p in section_disagreements(_hdu(file.hdus, amp).header, amp)]
    if problems:
        where = (info.visit, detector.id, camera.name, "; ".join(problems[:2]), len(problems), path)
        logger.warning("visit %d detector %d: camera file %s overrules header sections: %s (%d in all) in %s", *where)
    return RawDetector(info=info, pixels=stack, wcs=wcs)


def _facts(hdus: HDUList, camera: RawCamera) -> Header:
    """The header that tells what the exposure is: the primary's, or the only image's (HDU 1 after fpack)."""
    amplifier = next(iter(camera.detectors.values())).amplifiers[0]
    image = _hdu(hdus, amplifier) if amplifier.hdu == 0 else None
    return hdus[0].header if image is None else image.header


def _hdu(hdus: HDUList, amplifier: Amplifier) -> Any:
    """The image HDU of an amplifier, None if there is none. Number 0 is the first that has pixels."""
    images = {index: hdu for index, hdu in enumerate(hdus) if hdu.is_image and hdu.shape}
    if amplifier.hdu == 0:
        return next(iter(images.values()), None)
    if isinstance(amplifier.hdu, int):
        return images.get(amplifier.hdu)
    return next((hdu for hdu in images.values() if hdu.name.upper() == amplifier.hdu.upper()), None)


def _read_stack(file: FitsFile, detector: Detector, allocate: Allocate) -> np.ndarray:
    hdus = file.hdus
    missing = [amplifier.name for amplifier in detector.amplifiers if _hdu(hdus, amplifier) is None]
    if missing:
        n_wanted = len(detector.amplifiers)
        got = f"got {n_wanted - len(missing)}, wanted {n_wanted} amplifiers"
        raise InputError(f"missing amplifiers: {got}, without {', '.join(missing)}")
    stack = _decode_stack(file, detector, allocate)
    if stack is not None:
        return stack
    images = [_read_amplifier(hdus, amplifier, detector) for amplifier in detector.amplifiers]
    kinds = sorted({str(image.dtype) for image in images})
    if len(kinds) > 1:
        raise InputError(f"got amplifiers of types {', '.join(kinds)}, wanted one type")
    return np.stack(images, out=allocate((len(images), *images[0].shape), images[0].dtype))


def _decode_stack(file: FitsFile, detector: Detector, allocate: Allocate) -> np.ndarray | None:
    """All amplifiers at once, if every one is an HDU of its own, compressed by Rice or gzip, and they are alike; else None."""
    places = {id(hdu): index for index, hdu in enumerate(file.hdus)}
    images = []
    for amplifier in detector.amplifiers:
        image = compressed_image(file, places[id(_hdu(file.hdus, amplifier))])
        if image is None or image.shape != (amplifier.raw.y1, amplifier.raw.x1) or amplifier.raw.y0 or amplifier.raw.x0:
            return None
        images.append(image)
    if not are_alike(images):
        return None
    stack, whole = decode_stack(images, allocate((len(images), *images[0].shape), images[0].dtype))
    if not whole.all():
        broken = ", ".join(amplifier.name for amplifier, good in zip(detector.amplifiers, whole, strict=True) if not good)
        raise FileError(f"pixels of amplifier {broken} cannot be decoded: damaged tiles")
    return stack


def _read_amplifier(hdus: HDUList, amplifier: Amplifier, detector: Detector) -> np.ndarray:
    hdu = _hdu(hdus, amplifier)
    boxes = [other.raw for other in detector.amplifiers if other.hdu == amplifier.hdu]
    wanted = (max(box.y1 for box in boxes), max(box.x1 for box in boxes))
    if hdu.shape != wanted:
        raise InputError(f"amplifier {amplifier.name}: got HDU shape {hdu.shape}, wanted {wanted} (y, x)")
    return _native(_pixels(hdu, amplifier)[amplifier.raw.slices], amplifier)


def _pixels(hdu: Any, amplifier: Amplifier) -> np.ndarray:
    try:
        return hdu.data
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zlib.error) as error:
        problem = first_sentence(error)
        raise FileError(f"pixels of amplifier {amplifier.name} cannot be decoded: {problem}") from None


def _native(image: np.ndarray, amplifier: Amplifier) -> np.ndarray:
    """Pixels as uint16, int32 or float32 in native byte order. InputError for other types, NaN, infinity."""
    wanted = NATIVE.get(f"{image.dtype.kind}{image.dtype.itemsize}")
    if wanted is None:
        raise InputError(f"amplifier {amplifier.name}: got pixels of type {image.dtype}, wanted 8 to 32 bits")
    image = image.astype(wanted)
    if image.dtype.kind == "f":
        n_bad = int(image.size - np.isfinite(image).sum())
        if n_bad:
            raise InputError(f"amplifier {amplifier.name}: got {n_bad} NaN or infinite pixels, wanted none")
    return image


def _detector_wcs(header: Header, camera: RawCamera, detector: Detector) -> Wcs | None:
    """The header's WCS in pixels of the assembled detector."""
    frame = camera.headers.wcs_frame
    wcs = wcs_from_header(header) if frame else None
    if wcs is None or frame == "detector":
        return wcs
    return wcs.with_affine(raw_from_detector(detector.amplifiers[0]))
