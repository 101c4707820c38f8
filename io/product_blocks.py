"""The few pixels of a stored product that lie near given places of the sky, without reading the rest of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from nightstream.engine.values import Array, Exposure, ExposureInfo, MaskedImage
from nightstream.errors import InputError
from nightstream.io.hdf5_file import open_file, read_mapping, read_record
from nightstream.io.hdf5_values import read_wcs
from nightstream.io.products import CONTENT
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

Slices = tuple[slice, slice]


class NearbyPixels(NamedTuple):
    """Parts of one detector's products."""

    visit_image: Exposure
    difference: Exposure | None  # None where there is none
    psf_flux_limit: float  # nJy; of the whole difference, NaN where it was not stored


def read_nearby_pixels(path: str | Path, ra: Array, dec: Array) -> NearbyPixels:
    """Read what PSF photometry at positions (deg) on a product wants.

    The images have their full shape, but of their pixels only the stored blocks are read that a PSF at one of the positions
    touches; everywhere else image and mask are 0 and the variance is NaN, which no fit uses. Fluxes are those of the
    whole product, to the last bit. Raises FileError for a file that is missing or broken, InputError where it is no
    product or has no WCS or PSF.
    """
    with open_file(path, CONTENT) as file:
        return NearbyPixels(
            visit_image=_read_near(file["visit_image"], ra, dec),
            difference=_read_near(file["difference"], ra, dec) if "difference" in file else None,
            psf_flux_limit=float(read_mapping(file, "summary").get("psf_flux_limit", np.nan)),
        )


def _read_near(group: h5py.Group, ra: Array, dec: Array) -> Exposure:
    wcs, psf = read_wcs(group), read_record(group, "psf", PsfModel) if "psf" in group else None
    if wcs is None or psf is None:
        raise InputError(f"{group.name} has no {'WCS' if wcs is None else 'PSF'}, wanted both to measure on it")
    return Exposure(
        info=read_record(group, "info", ExposureInfo),
        pixels=_read_blocks(group, list(blocks_near(group["image"], wcs, ra, dec, psf.size // 2 + 1))),
        wcs=wcs,
        psf=psf,
        njy_per_unit=float(group.attrs["njy_per_unit"]),
    )


def _read_blocks(group: h5py.Group, blocks: list[Slices]) -> MaskedImage:
    shape = group["image"].shape
    planes = {name: np.zeros(shape, group[name].dtype) for name in ("image", "mask")}  # memory is taken where it is read
    planes["variance"] = np.full(shape, np.nan, group["variance"].dtype)
    for name, plane in planes.items():
        for block in blocks:
            plane[block] = group[name][block]
    return MaskedImage(**planes)


def blocks_near(dataset: h5py.Dataset, wcs: Wcs, ra: Array, dec: Array, reach_pix: int) -> Iterator[Slices]:
    """Yield the blocks in which ``dataset`` is stored that a box of ``reach_pix`` around a position (deg) touches.

    Positions off the image want none.
    """
    (ny, nx), (height, width) = dataset.shape, dataset.chunks or dataset.shape
    x, y = wcs.pixel_from_sky(np.asarray(ra, np.float64), np.asarray(dec, np.float64))
    inside = (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5)
    wanted = np.zeros((-(-ny // height), -(-nx // width)), dtype=bool)
    for column, row in zip(np.rint(x[inside]).astype(int), np.rint(y[inside]).astype(int), strict=True):
        rows = slice(max(row - reach_pix, 0) // height, (row + reach_pix) // height + 1)
        wanted[rows, max(column - reach_pix, 0) // width : (column + reach_pix) // width + 1] = True
    for row, column in np.argwhere(wanted):
        yield slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
