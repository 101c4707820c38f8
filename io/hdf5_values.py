"""The engine's values inside HDF5 groups: masked images, exposures, cutouts, tables, WCS."""

from __future__ import annotations

import sys
from typing import Any

import h5py
import numpy as np

from nightstream import __version__
from nightstream.engine.memory import to_host
from nightstream.engine.values import Cutouts, Exposure, ExposureInfo, MaskedImage, StampSet, Table
from nightstream.errors import FileError
from nightstream.io.hdf5_file import read_record, read_text, write_plane, write_record, write_text
from nightstream.io.schema import Schema, from_structured, to_structured
from nightstream.io.wcs_cards import wcs_from_header, wcs_to_text
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

_ROW_TYPES: list[tuple] = []  # row types met so far: in the file, in NumPy, in HDF5's memory
FORMAT_VERSION = 1  # raised when a reader of the old files would misread the new ones
CUTOUT_COLUMNS = ("size", "x0", "y0", "x", "y")
STAMP_PLANES = ("image", "mask", "variance")
CUTOUT_KINDS = ("difference", "science", "template")


def describe_file(file: h5py.File, content: str, **identity: Any) -> None:
    """Say at the top of a file what it holds, and which versions wrote it."""
    file.attrs["content"] = content
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs.update(identity)
    versions = {"nightstream": __version__, "python": sys.version.split()[0], "numpy": np.__version__}
    file.create_group("versions").attrs.update(versions | {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version})


def write_masked_image(parent: h5py.Group, name: str, pixels: MaskedImage, unit: str) -> h5py.Group:
    """Write the three planes in a new group. The mask carries ``MP_<PLANE>`` = number of the plane's bit."""
    group = parent.create_group(name)
    write_plane(group, "image", pixels.image, {"unit": unit})
    write_plane(group, "mask", pixels.mask, mask_attributes())
    write_plane(group, "variance", pixels.variance, {"unit": f"{unit}**2" if unit else ""})
    return group


def read_masked_image(group: h5py.Group) -> MaskedImage:
    """Return what `write_masked_image` wrote, bit by bit."""
    return MaskedImage(*(group[name][()] for name in ("image", "mask", "variance")))


def mask_attributes() -> dict[str, int]:
    """Return ``MP_<PLANE>``: bit number, for every mask plane."""
    return {f"MP_{plane.name}": plane.value.bit_length() - 1 for plane in MaskPlane}


def write_exposure(parent: h5py.Group, name: str, exposure: Exposure, unit: str) -> None:
    """Write pixels, WCS (FITS cards), PSF, header facts and flux scale in a new group."""
    group = write_masked_image(parent, name, exposure.pixels, unit)
    group.attrs["njy_per_unit"] = float(exposure.njy_per_unit)
    write_wcs(group, exposure.wcs)
    if exposure.psf is not None:
        write_record(group, "psf", exposure.psf)
    write_record(group, "info", exposure.info)


def read_exposure(group: h5py.Group) -> Exposure:
    """Return what `write_exposure` wrote."""
    return Exposure(
        info=read_record(group, "info", ExposureInfo),
        pixels=read_masked_image(group),
        wcs=read_wcs(group),
        psf=read_record(group, "psf", PsfModel) if "psf" in group else None,
        njy_per_unit=float(group.attrs["njy_per_unit"]),
    )


def write_cutouts(parent: h5py.Group, name: str, cutouts: Cutouts) -> None:
    """Write the stamps in a new group: ``boxes``, a row a source; ``image``, ``mask``, ``variance``, a row of pixels a kind.

    They are not compressed: beside the images they are small, and the alerts wait for them.
    """
    group = parent.create_group(name)
    columns = [to_host(getattr(cutouts, column)) for column in CUTOUT_COLUMNS]
    group.create_dataset("boxes", data=np.rec.fromarrays(columns, names=CUTOUT_COLUMNS))
    kinds = [getattr(cutouts, kind) for kind in CUTOUT_KINDS]
    for plane in STAMP_PLANES:
        dataset = group.create_dataset(plane, data=np.stack([to_host(getattr(stamps, plane)) for stamps in kinds]))
        dataset.attrs["kinds"] = CUTOUT_KINDS
    group["image"].attrs["unit"], group["variance"].attrs["unit"] = "nJy", "nJy**2"
    group["mask"].attrs.update(mask_attributes())
    for kind, stamps in zip(CUTOUT_KINDS, kinds, strict=True):
        group.create_dataset(f"psf_{kind}", data=to_host(stamps.psf))


def read_cutouts(group: h5py.Group) -> Cutouts:
    """Return what `write_cutouts` wrote, bit by bit."""
    boxes = group["boxes"][()]
    planes = zip(*(group[plane][()] for plane in STAMP_PLANES), strict=True)
    kinds = {kind: StampSet(*pixels, group[f"psf_{kind}"][()]) for kind, pixels in zip(CUTOUT_KINDS, planes, strict=True)}
    return Cutouts(**{name: np.ascontiguousarray(boxes[name]) for name in CUTOUT_COLUMNS}, **kinds)


def write_wcs(group: h5py.Group, wcs: Wcs | None) -> None:
    """Write ``wcs``, if there is one, as FITS card text."""
    if wcs is not None:
        write_text(group, "wcs", wcs_to_text(wcs))


def read_wcs(group: h5py.Group) -> Wcs | None:
    """Return what `write_wcs` wrote."""
    return wcs_from_header(read_text(group, "wcs")) if "wcs" in group else None


def write_table(parent: h5py.Group, name: str, table: Table, schema: Schema) -> None:
    """Write ``table`` as a compound dataset with the schema's columns.

    Attributes ``unit``, ``description`` and ``ucd`` hold one text a column, in the columns' order; ``measured`` names the
    columns that are not just nulls.
    """
    rows = to_structured(table, schema)
    chosen = [schema.by_apdb[apdb] for apdb in rows.dtype.names or ()]
    dataset = parent.create_dataset(name, data=rows, **({"compression": "gzip"} if len(rows) else {}))
    dataset.attrs["schema"] = schema.name
    dataset.attrs["measured"] = " ".join(table)
    for attribute in ("unit", "description", "ucd"):
        texts = [getattr(column, attribute) for column in chosen]
        dataset.attrs.create(attribute, texts, dtype=h5py.string_dtype())


def read_table(group: h5py.Group, name: str, schema: Schema) -> Table:
    """Return the measured columns of what `write_table` wrote."""
    dataset = group[name]
    if dataset.attrs.get("schema") != schema.name:
        raise FileError(f"table {name} has schema {dataset.attrs.get('schema')}, wanted {schema.name}")
    return from_structured(_read_rows(dataset), schema, tuple(dataset.attrs["measured"].split()))


def _read_rows(dataset: h5py.Dataset) -> np.ndarray:
    """Return ``dataset[()]``, of which h5py would spend most of the time on working out a hundred columns' types anew."""
    stored = dataset.id.get_type()
    known = next((types for types in _ROW_TYPES if types[0] == stored), None)
    if known is None:
        dtype = dataset.dtype
        known = stored.copy(), dtype, h5py.h5t.py_create(dtype)
        _ROW_TYPES.append(known)
    _, dtype, in_memory = known
    rows = np.empty(dataset.shape, dtype)
    if rows.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, rows, in_memory)
    return rows
