"""FITS files that ds9 and TOPCAT open, from any HDF5 product: detector products, calibrations, templates.

| in the HDF5 file               | FITS extensions                                                    |
|--------------------------------|--------------------------------------------------------------------|
| a group with pixels, ``name``  | NAME, NAME_MASK, NAME_VARIANCE, and NAME_PSF at the image's centre |
| a table                        | a binary table of its name                                         |
| any other image                | an image of its name                                               |
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from nightstream.io.atomic import complete_or_absent
from nightstream.io.calibrations import CONTENT as CALIBRATIONS
from nightstream.io.hdf5_file import open_file, read_mapping, read_record, read_text
from nightstream.io.products import CONTENT as PRODUCTS
from nightstream.io.templates import CONTENT as TEMPLATE
from nightstream.io.wcs_cards import WCS_KEYWORD
from nightstream.kernels.psf import PsfModel

if TYPE_CHECKING:
    from astropy.io import fits

AB_ZERO_NJY = 31.4  # AB magnitude of 1 nJy


def export_fits(path_h5: str | Path, out_path: str | Path) -> Path:
    """Write the HDF5 product ``path_h5`` as the FITS file ``out_path``, complete or not at all; return its path.

    A name that ends in ``.gz`` makes a compressed file. The header of the raw frame is kept, but for what described its
    pixels and its WCS; each image carries its own WCS, and a mask the numbers of its bits as ``MP_<PLANE>``.
    """
    from astropy.io import fits

    with open_file(path_h5, PRODUCTS, CALIBRATIONS, TEMPLATE) as file:
        hdus = fits.HDUList([_primary(file)])
        for name, node in file.items():
            hdus.extend(_extensions(name, node))
        _write(hdus, Path(out_path))
    return Path(out_path)


def _write(hdus: fits.HDUList, path: Path) -> None:
    hdus.verify("exception")
    with complete_or_absent(path) as temporary:
        with (gzip.open if path.suffix == ".gz" else open)(temporary, "wb") as stream:
            hdus.writeto(stream)


def _extensions(name: str, node: h5py.Group | h5py.Dataset) -> list:
    if isinstance(node, h5py.Group):
        return _pixel_extensions(name, node) if "image" in node else []
    return [_table(name, node) if node.dtype.names else _image(name, node, [])]


def _pixel_extensions(name: str, group: h5py.Group) -> list:
    wcs = _wcs_cards(group)
    hdus = [_image(name, group["image"], wcs)]
    hdus += [_image(f"{name}_{plane}", group[plane], wcs) for plane in ("mask", "variance")]
    if "njy_per_unit" in group.attrs:
        _add_photometry(hdus[0].header, float(group.attrs["njy_per_unit"]))
    return hdus + [_psf(f"{name}_psf", group)] if "psf" in group else hdus


def _image(name: str, dataset: h5py.Dataset, cards: list) -> fits.ImageHDU:
    from astropy.io import fits

    hdu = fits.ImageHDU(dataset[()], name=name.upper())
    if dataset.attrs.get("unit"):
        hdu.header["BUNIT"] = dataset.attrs["unit"]
    for key, value in dataset.attrs.items():
        if key.startswith("MP_"):
            hdu.header[f"HIERARCH {key}"] = (int(value), "bit number")
    hdu.header.extend(cards)
    return hdu


def _wcs_cards(group: h5py.Group) -> list:
    """Return the stored cards as they are: rebuilt ones would lose digits."""
    from astropy.io import fits

    return [fits.Card.fromstring(line) for line in read_text(group, "wcs").splitlines()] if "wcs" in group else []


def _add_photometry(header: fits.Header, njy_per_unit: float) -> None:
    header["NJYPERDU"] = (njy_per_unit, "nJy per unit of the pixels")
    if njy_per_unit > 0.0:
        magnitude = AB_ZERO_NJY - 2.5 * math.log10(njy_per_unit)
        header["MAGZERO"] = (magnitude, "AB magnitude of one unit")


def _psf(name: str, group: h5py.Group) -> fits.ImageHDU:
    from astropy.io import fits

    height, width = group["image"].shape
    x, y = np.array([0.5 * (width - 1)]), np.array([0.5 * (height - 1)])
    hdu = fits.ImageHDU(read_record(group, "psf", PsfModel).centred(x, y)[0], name=name.upper())
    hdu.header["PSF_X"], hdu.header["PSF_Y"] = (x[0], "[pixel] where, from 0"), (y[0], "[pixel] where, from 0")
    return hdu


def _table(name: str, dataset: h5py.Dataset) -> fits.BinTableHDU:
    """Return the table with units; UCDs and meanings as TUCDn and TCOMMn, which TOPCAT shows."""
    from astropy.io import fits

    hdu = fits.BinTableHDU(dataset[()], name=name.upper())
    for keyword, attribute in (("TUNIT", "unit"), ("TUCD", "ucd"), ("TCOMM", "description")):
        for number, text in enumerate(dataset.attrs[attribute], start=1):
            if text:
                hdu.header[f"{keyword}{number}"] = text
    return hdu


def _primary(file: h5py.File) -> fits.PrimaryHDU:
    from astropy.io import fits

    hdu = fits.PrimaryHDU()
    if "visit_image/info/header" in file:
        hdu.header.extend(_kept_cards(read_text(file, "visit_image/info/header")))
    for key, value in file.attrs.items():
        hdu.header[_keyword(key)] = _header_value(value)
    for key, value in (read_mapping(file, "summary") if "summary" in file else {}).items():
        if math.isfinite(value):
            hdu.header[_keyword(f"NS_{key}")] = value
    for key, value in read_mapping(file, "provenance").items():
        hdu.header.add_history(_ascii(f"{key}: {value}"))
    return hdu


def _kept_cards(text: str) -> list:
    """Return the raw header's cards that are sound and speak neither of its file's structure nor of its WCS."""
    from astropy.io import fits

    header = fits.Header.fromstring(text, sep="\n")
    header.strip()
    kept = []
    for card in header.cards:
        try:
            card.verify("exception")
        except (fits.VerifyError, ValueError):
            continue
        if not (WCS_KEYWORD.match(card.keyword) or card.keyword in _STRUCTURE):
            kept.append(card)
    return kept


_STRUCTURE = {"EXTNAME", "EXTVER", "INHERIT", "CHECKSUM", "DATASUM", "BUNIT", "DATASEC", "BIASSEC", "TRIMSEC"}
_STRUCTURE |= {"DETSEC", "CCDSEC", "AMPSEC", "LTV1", "LTV2", "LTM1_1", "LTM2_2", "NEXTEND", "ZCMPTYPE", ""}


def _keyword(name: str) -> str:
    return name.upper() if len(name) <= 8 else f"HIERARCH {name.upper()}"


def _header_value(value: Any) -> str | int | float:
    return value.item() if isinstance(value, np.generic) else _ascii(value)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")
