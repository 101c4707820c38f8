"""What is known of one detector of one visit, as ``<output>/visit=<id>/detector=<nnn>.h5``; and the visit's master.

    /                   attributes: content, visit, detector, camera, band, format_version
    visit_image/        image, mask, variance, wcs (FITS cards), psf/, info/ (header facts, header text)
    difference/         the same; absent without a template, and where none could be made (provenance says why)
    dia_sources         compound table with the columns of the APDB's DiaSource
    forced_sources      compound table with the columns of the APDB's DiaForcedSource
    cutouts/            boxes: size, x0, y0, x, y of every DIASource's stamps; image, mask, variance: a row each of difference,
                        science and template, stamp after stamp, nJy; psf_<kind>; absent without a template
    summary, timings, provenance, versions     groups of attributes; timings in seconds

The master ``visit.h5`` links the detectors' files and says in ``detectors/status`` how each of them ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from nightstream.engine.values import Cutouts, DetectorProducts, Exposure, ExposureInfo, Table
from nightstream.errors import InputError, NightstreamError
from nightstream.io.apdb import DIA_FORCED_SOURCE, DIA_SOURCE
from nightstream.io.hdf5_file import create_file, open_file, read_mapping, read_record, write_mapping
from nightstream.io.hdf5_values import (
    describe_file,
    read_exposure,
    read_table,
    read_wcs,
    write_cutouts,
    write_exposure,
    write_table,
)
from nightstream.io.hdf5_values import read_cutouts as read_cutouts_group
from nightstream.io.rounding import round_to_noise
from nightstream.kernels.wcs import Wcs

CONTENT = "detector products"
MASTER_CONTENT = "visit"
UNIT = "electron"
TEXT = h5py.string_dtype()
STATUS_DTYPE = [
    ("detector", "<i2"),
    ("status", TEXT),
    ("error", TEXT),
    ("raw", TEXT),
    ("dia_sources", "<i4"),
    ("forced_sources", "<i4"),
    ("seconds", "<f4"),
]


class Report(Protocol):
    """How one detector of a visit ended; what the scheduler's reports offer."""

    detector: int
    path: str  # of the raw file
    status: str  # "done", or why not
    error: str
    output: str  # the product file; empty for none
    counts: Mapping[str, int]  # dia_sources, forced_sources
    timings_s: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectorTables:
    """What one detector of one visit found, without its pixels."""

    info: ExposureInfo
    wcs: Wcs | None
    shape: tuple[int, int]  # (ny, nx)
    njy_per_unit: float
    summary: dict[str, float]
    dia_sources: Table
    forced_sources: Table


def visit_directory(output_dir: str | Path, visit: int) -> Path:
    """Return the folder of a visit's products."""
    return Path(output_dir) / f"visit={visit}"


def product_path(output_dir: str | Path, visit: int, detector: int) -> Path:
    """Return the file of one detector's products."""
    return visit_directory(output_dir, visit) / f"detector={detector:03d}.h5"


def write_detector_products(output_dir: str | Path, products: DetectorProducts, *, steps_per_sigma: int | None = None) -> Path:
    """Write one detector's products, complete or not at all, and return the file's path. An old file is replaced.

    Pixels are stored without loss, unless ``steps_per_sigma`` (16 is a good number) rounds the images to that many
    steps in a standard deviation of the noise: a third of the space, and 1 / (12 steps^2) more noise variance.
    Raises FileError, naming file, visit and detector, when the disk is full or cannot be written.
    """
    info = products.visit_image.info
    path = product_path(output_dir, info.visit, info.detector)
    identity = {"visit": info.visit, "detector": info.detector, "camera": info.camera, "band": info.band}
    with create_file(path, visit=info.visit, detector=info.detector) as file:
        describe_file(file, CONTENT, **identity)
        _write_exposure(file, "visit_image", products.visit_image, steps_per_sigma)
        if products.difference is not None:
            _write_exposure(file, "difference", products.difference, steps_per_sigma)
        write_table(file, "dia_sources", products.dia_sources, DIA_SOURCE)
        write_table(file, "forced_sources", products.forced_sources, DIA_FORCED_SOURCE)
        if products.cutouts is not None:
            write_cutouts(file, "cutouts", products.cutouts)
        write_mapping(file, "summary", products.summary)
        write_mapping(file, "timings", products.timings_s)
        write_mapping(file, "provenance", products.provenance)
    return path


def read_detector_products(path: str | Path) -> DetectorProducts:
    """Return the engine's values from a file of `write_detector_products`, bit by bit if they were not rounded."""
    with open_file(path, CONTENT) as file:
        return DetectorProducts(
            visit_image=read_exposure(file["visit_image"]),
            difference=read_exposure(file["difference"]) if "difference" in file else None,
            dia_sources=read_table(file, "dia_sources", DIA_SOURCE),
            forced_sources=read_table(file, "forced_sources", DIA_FORCED_SOURCE),
            summary=read_mapping(file, "summary"),
            timings_s=read_mapping(file, "timings"),
            provenance=read_mapping(file, "provenance"),
            cutouts=read_cutouts_group(file["cutouts"]) if "cutouts" in file else None,
        )


def read_dia_tables(path: str | Path) -> DetectorTables:
    """Return the tables and the summary of a product, and what places them on the sky; no pixels are read."""
    with open_file(path, CONTENT) as file:
        image = file["visit_image"]
        return DetectorTables(
            info=read_record(image, "info", ExposureInfo),
            wcs=read_wcs(image),
            shape=image["image"].shape,
            njy_per_unit=float(image.attrs["njy_per_unit"]),
            summary=read_mapping(file, "summary"),
            dia_sources=read_table(file, "dia_sources", DIA_SOURCE),
            forced_sources=read_table(file, "forced_sources", DIA_FORCED_SOURCE),
        )


def read_cutouts(path: str | Path) -> Cutouts:
    """Return the stamps of a product, in the order of its DIASources. Raises InputError when it holds none."""
    with open_file(path, CONTENT) as file:
        if "cutouts" not in file:
            raise InputError("the product holds no cutouts: it was made without a template, or by an older version")
        return read_cutouts_group(file["cutouts"])


def footprint(wcs: Wcs, shape: tuple[int, int]) -> np.ndarray:
    """Return (4, 2) float64 ra, dec (deg) of the outer corners of a detector of ``shape`` (ny, nx), in order around it."""
    ny, nx = shape
    corners = wcs.sky_from_pixel(np.array([0, nx, nx, 0]) - 0.5, np.array([0, 0, ny, ny]) - 0.5)
    return np.stack(corners, axis=1)


def write_visit_master(output_dir: str | Path, visit: int, reports: Iterable[Report]) -> Path:
    """Write ``visit.h5``: a link to each detector's product, and a row of ``detectors/status`` for every one.

    The table is what counts: a link to a file that went missing is an error only when it is followed. When a visit
    is processed again, what failed loses its older product, so that none looks as if it were of the last run; what
    was not asked for, or is done and has no raw file any more, keeps its row and its product.
    """
    path = visit_directory(output_dir, visit) / "visit.h5"
    reports = list(reports)
    rows = sorted(_merged_rows(path, reports))
    _remove_stale(output_dir, visit, reports)
    with create_file(path, visit=visit) as file:
        describe_file(file, MASTER_CONTENT, visit=visit)
        group = file.create_group("detectors")
        group.create_dataset("status", data=np.array(rows, dtype=STATUS_DTYPE))
        for detector, status, *_ in rows:
            product = product_path(output_dir, visit, detector)
            if status == "done" or product.exists():
                group[f"{detector:03d}"] = h5py.ExternalLink(product.name, "/")
    return path


def read_visit_status(path: str | Path) -> list[dict]:
    """Return the rows of a master's ``detectors/status``, one dict a detector, in the detectors' order."""
    with open_file(path, MASTER_CONTENT) as file:
        rows = file["detectors/status"][()]
    texts = [name for name in rows.dtype.names if rows.dtype[name].kind == "O"]
    plain = [dict(zip(rows.dtype.names, row.tolist(), strict=True)) for row in rows]
    return [row | {name: row[name].decode() for name in texts} for row in plain]


def _merged_rows(path: Path, reports: list[Report]) -> list[tuple]:
    """A row a report, and the rows of the master at ``path`` that still stand."""
    rows = {report.detector: _status_row(report) for report in reports}
    try:
        older = read_visit_status(path)
    except NightstreamError:
        older = []  # there is none, or nothing can be learnt from it
    for row in older:
        new = rows.get(row["detector"])
        if new is None or (new[1] == "missing" and row["status"] == "done"):
            rows[row["detector"]] = tuple(row.values())
    return list(rows.values())


def _status_row(report: Report) -> tuple:
    """One row of `STATUS_DTYPE`."""
    counts = [report.counts.get(name, 0) for name in ("dia_sources", "forced_sources")]
    return report.detector, report.status, report.error, report.path, *counts, sum(report.timings_s.values())


def _left_nothing(report: Report) -> bool:
    """Did it fail without a visit image? An older product would then pass for one of this run."""
    return report.status == "failed" and not report.output


def _remove_stale(output_dir: str | Path, visit: int, reports: list[Report]) -> None:
    """Remove older products of detectors that failed now, and first the older master, which links them."""
    paths = [product_path(output_dir, visit, report.detector) for report in reports if _left_nothing(report)]
    stale = [path for path in paths if path.exists()]
    with suppress(OSError):  # a folder that cannot be changed fails the master, too, and that is told
        for path in [visit_directory(output_dir, visit) / "visit.h5", *stale] if stale else []:
            path.unlink(missing_ok=True)


def _write_exposure(file: h5py.File, name: str, exposure: Exposure, steps_per_sigma: int | None) -> None:
    if steps_per_sigma is None:
        write_exposure(file, name, exposure, UNIT)
        return
    rounded, step = round_to_noise(exposure.pixels, steps_per_sigma)
    write_exposure(file, name, dataclasses.replace(exposure, pixels=rounded), UNIT)
    file[name]["image"].attrs.update({"rounding_step": step, "steps_per_sigma": steps_per_sigma})
