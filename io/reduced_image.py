"""Reduced images as other pipelines leave them: a FITS file in as `ReducedImage`, a difference out as FITS.

| in the difference file | holds                                                                                  |
|------------------------|----------------------------------------------------------------------------------------|
| primary HDU            | the difference, float32, science units; header of the science image, diagnostics as NS |
| MASK                   | int32, bits named by ``MP_<PLANE>``                                                     |
| VARIANCE               | float32, unit squared                                                                   |
| PSF                    | the PSF in the middle of the image; PSF_MODEL its coefficients over the image           |
| MATCHED                | what was subtracted                                                                     |
| KERNEL                 | the matching kernel in the middle of the image                                          |
| SCORE, FLUX, FLUX_ERR  | of a point source at each pixel, where a score image was asked for                      |
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nightstream.engine.values import ExposureInfo, ReducedImage, Subtraction
from nightstream.errors import FileError, InputError, NightstreamError
from nightstream.io.atomic import complete_or_absent
from nightstream.io.fits_file import first_sentence, open_fits
from nightstream.io.header import header_text
from nightstream.io.wcs_cards import WCS_KEYWORD, wcs_from_header, wcs_to_cards
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.wcs import Wcs

if TYPE_CHECKING:
    from astropy.io import fits

GAIN_KEYWORDS = ("GAIN", "EGAIN", "GAINEFF", "CCDGAIN")  # electrons per unit; the first that is there and positive counts
READ_NOISE_KEYWORDS = ("RDNOISE", "READNOIS", "READNOISE", "RON", "ENOISE")  # electrons
SATURATION_KEYWORDS = ("SATURATE", "SATURAT", "SATLEVEL", "SATURLEV")  # unit of the image
STRUCTURE = ("SIMPLE", "XTENSION", "BITPIX", "EXTEND", "PCOUNT", "GCOUNT", "BZERO", "BSCALE", "BLANK", "EXTNAME", "EXTVER")
STRUCTURE += ("CHECKSUM", "DATASUM", "INHERIT", "ZCMPTYPE", "ZIMAGE", "ZBITPIX", "DATAMIN", "DATAMAX")


def read_reduced(
    path: str | Path, *, extension: int | str | None = None, gain: float | None = None, read_noise: float | None = None,
    saturation: float | None = None, mask: str | Path | None = None, variance: str | Path | None = None,
    weight: str | Path | None = None,
) -> ReducedImage:  # fmt: skip
    """Read the first two-dimensional image of a FITS file, plain, gzipped or tile compressed, or that of ``extension``.

    ``gain`` (electrons per unit), ``read_noise`` (electrons) and ``saturation`` (unit of the image) win over the header.
    ``mask`` is a FITS image of which any nonzero pixel is bad; ``variance`` or ``weight`` (inverse variance, 0 for no value)
    one in units of the image squared. Raises FileError for a file that cannot be read, InputError for one that does not fit.
    """
    image, header = _read_image(path, extension)
    planes = {name: _plane(other, image.shape) for name, other in (("mask", mask), ("variance", variance), ("weight", weight))}
    return ReducedImage(
        image=image,
        mask=None if planes["mask"] is None else (planes["mask"] != 0).astype(np.int32) * np.int32(MaskPlane.BAD),
        variance=planes["variance"] if planes["weight"] is None else _inverse(planes["weight"]),
        gain=gain if gain is not None else _number(header, GAIN_KEYWORDS),
        read_noise=read_noise if read_noise is not None else _number(header, READ_NOISE_KEYWORDS) or 0.0,
        saturation=saturation if saturation is not None else _number(header, SATURATION_KEYWORDS),
        wcs=_wcs(header, path),
        info=ExposureInfo(
            visit=0, detector=0, camera="", kind="science", band="", exposure_time_s=0.0, dark_time_s=0.0,
            midpoint_mjd_tai=0.0, path=str(path), header=header_text(header),
        ),
    )  # fmt: skip


def _read_image(path, extension) -> tuple[np.ndarray, fits.Header]:
    try:
        with open_fits(Path(path)) as (hdus, _):
            hdu = hdus[extension] if extension is not None else next((h for h in hdus if _is_image(h)), None)
            if hdu is None or not _is_image(hdu):
                raise InputError("got no two-dimensional image, wanted one")
            return np.ascontiguousarray(hdu.data, dtype=np.float32), hdu.header
    except NightstreamError as error:
        raise error.locate(path=str(path)) from None
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FileError(f"cannot read the image: {first_sentence(error)}", path=str(path)) from None


def _wcs(header, path) -> Wcs | None:
    try:
        return wcs_from_header(header)
    except NightstreamError as error:
        raise error.locate(path=str(path)) from None


def _is_image(hdu) -> bool:
    from astropy.io import fits

    return isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) and hdu.data is not None and hdu.data.ndim == 2


def _plane(path, shape) -> np.ndarray | None:
    if path is None:
        return None
    plane, _ = _read_image(path, None)
    if plane.shape != shape:
        raise InputError(f"got an image of shape {plane.shape}, wanted that of the image it belongs to, {shape}", path=str(path))
    return plane


def _inverse(weight) -> np.ndarray:
    return np.where(weight > 0, 1 / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def _number(header, keywords) -> float | None:
    for keyword in keywords:
        value = header.get(keyword)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return float(value)
    return None


def write_difference(path: str | Path, subtraction: Subtraction, provenance: dict[str, str] | None = None) -> Path:
    """Write ``subtraction`` (on the host) as a FITS file, complete or not at all; return its path. See the table above."""
    from astropy.io import fits

    hdus = [_primary(subtraction, provenance or {}), *_planes(subtraction), *_psf(subtraction), *_kernel(subtraction)]
    if subtraction.score is not None:
        hdus += [fits.ImageHDU(getattr(subtraction.score, name), name=name.upper()) for name in ("score", "flux", "flux_err")]
    with complete_or_absent(Path(path)) as temporary:
        fits.HDUList(hdus).writeto(temporary, overwrite=True)
    return Path(path)


def _primary(subtraction: Subtraction, provenance) -> fits.PrimaryHDU:
    from astropy.io import fits

    exposure = subtraction.difference
    hdu = fits.PrimaryHDU(exposure.pixels.image)
    kept = fits.Header.fromstring(exposure.info.header, sep="\n") if exposure.info.header else fits.Header()
    for card in kept.cards:
        if card.keyword not in STRUCTURE and not card.keyword.startswith("NAXIS") and _is_sound(card):
            hdu.header.append(card, end=True)
    if exposure.wcs is not None and not any(WCS_KEYWORD.match(card.keyword) for card in kept.cards):
        hdu.header.extend(wcs_to_cards(exposure.wcs))
    for key, value in subtraction.diagnostics.items():
        if math.isfinite(value):
            hdu.header[f"HIERARCH NS {key.upper()}"] = value
    for key, value in provenance.items():
        hdu.header.add_history(f"{key}: {value}".encode("ascii", "replace").decode())
    return hdu


def _is_sound(card) -> bool:
    from astropy.io import fits

    try:
        card.verify("exception")
    except (fits.VerifyError, ValueError):
        return False
    return True


def _planes(subtraction: Subtraction) -> list[Any]:
    from astropy.io import fits

    pixels = subtraction.difference.pixels
    mask = fits.ImageHDU(pixels.mask, name="MASK")
    for plane in MaskPlane:
        mask.header[f"HIERARCH MP_{plane.name}"] = (int(plane).bit_length() - 1, "bit number")
    matched = fits.ImageHDU(subtraction.result.matched_template.pixels.image, name="MATCHED")
    return [mask, fits.ImageHDU(pixels.variance, name="VARIANCE"), matched]


def _psf(subtraction: Subtraction) -> list[Any]:
    from astropy.io import fits

    psf, (ny, nx) = subtraction.difference.psf, subtraction.difference.pixels.shape
    x, y = (nx - 1) / 2, (ny - 1) / 2
    stamp = fits.ImageHDU(psf.centred(x, y)[0], name="PSF")
    stamp.header["PSF_X"], stamp.header["PSF_Y"] = (x, "[pixel] where, from 0"), (y, "[pixel] where, from 0")
    model = fits.ImageHDU(np.asarray(psf.coefficients), name="PSF_MODEL")
    model.header["COMMENT"] = "P(x, y) = sum_k u^i v^j plane[k], i + j <= ORDER by rising degree, u = (x - XCENTRE) / XSCALE"
    for name in ("order", "x_centre", "y_centre", "x_scale", "y_scale"):
        model.header[name.replace("_", "").upper()] = getattr(psf, name)
    return [stamp, model]


def _kernel(subtraction: Subtraction) -> list[Any]:
    from astropy.io import fits

    kernel = subtraction.result.kernel
    if kernel is None:
        return []
    ny, nx = kernel.shape
    return [fits.ImageHDU(np.asarray(kernel.kernel_at((nx - 1) / 2, (ny - 1) / 2)[0], dtype=np.float32), name="KERNEL")]
