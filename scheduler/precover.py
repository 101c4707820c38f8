"""Precovery: what new DIAObjects were before they were found, measured on the stored images of the days before.

Nothing is kept in memory but one product at a time. Each product's rows are one transaction that changes nothing when it is
done twice, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.force import force_photometry
from nightstream.engine.values import Array, Table
from nightstream.errors import NightstreamError
from nightstream.io.apdb import DIA_FORCED_SOURCE
from nightstream.io.database.prompt_database import CORNERS, PromptDatabase
from nightstream.io.database.sky_cells import inside_polygon
from nightstream.io.product_blocks import read_nearby_pixels
from nightstream.io.products import product_path
from nightstream.io.schema import from_structured, to_structured
from nightstream.kernels.sky_frames import unit_vectors

PADDING_ARCSEC = 1.0  # stored corners are centres of pixels, and edges of distorted images bow
POSITION = ("dia_object_id", "ra", "dec")
KEY = ("dia_object_id", "visit", "detector")  # of a forced source


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecoverySummary:
    """What a run of `precover` did."""

    n_objects: int  # that were new
    n_done: int  # of those, now marked
    n_products: int  # opened
    n_rows: int  # forced sources measured
    failures: tuple[NightstreamError, ...]  # products that could not be used


@dataclass(frozen=True, slots=True)
class ProductTask:
    """Positions to measure on the product of one detector of one visit."""

    visit: int
    detector: int
    positions: Table  # dia_object_id, ra, dec


def precover(
    database: PromptDatabase,
    products_dir: str | Path,
    *,
    now_mjd_tai: float,
    days: float = 30.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PrecoverySummary:
    """Force photometry of every new DIAObject on the stored images from ``days`` before its first source until now.

    An object is done when every product that covers it was measured, at once or in an earlier run. A product that cannot be
    used is told in ``failures``, naming file, visit and detector; its objects are tried again next time, unless the
    newest visit is more than ``days`` after their first source: by then the images are gone for good.
    ``progress(done, total)`` counts products. Doing it twice changes nothing.
    """
    objects = database.objects_without_precovery(-np.inf)
    tasks, newest = plan_precovery(database, objects, days)
    failures, unfinished, n_rows = [], [], 0
    for done, task in enumerate(tasks, 1):
        try:
            rows = _measure(task, products_dir)
        except NightstreamError as error:
            failures.append(error.locate(visit=task.visit, detector=task.detector))
            unfinished.append(task.positions["dia_object_id"])
        else:
            database.add_forced(rows | {"time_processed_mjd_tai": np.full(len(rows["ra"]), now_mjd_tai)})
            n_rows += len(rows["ra"])
        progress(done, len(tasks))
    ids, first = objects["dia_object_id"], objects["first_dia_source_mjd_tai"]
    finished = ids[~np.isin(ids, np.concatenate(unfinished)) | (first < newest - days)] if unfinished else ids
    if len(finished):
        database.mark_precovered(finished, now_mjd_tai)
    return PrecoverySummary(
        n_objects=len(ids), n_done=len(finished), n_products=len(tasks), n_rows=n_rows, failures=tuple(failures)
    )


def force_from_product(path: str | Path, positions: Table) -> Table:
    """Measure positions (dia_object_id, ra, dec) on a stored product: to the last bit what its worker would have stored there.

    Returns the columns of `force_photometry` without dia_source_id; positions off the image have no row, those where nothing
    could be measured have the detector's 5-sigma limit. Only the pixels around the positions are read. Raises FileError
    or InputError, naming the file.
    """
    near = read_nearby_pixels(path, positions["ra"], positions["dec"])
    rows = force_photometry(near.visit_image, near.difference, {name: positions[name] for name in POSITION})
    rows["psf_flux_limit"] = np.where(np.isfinite(rows["psf_flux_err"]), rows["psf_flux_limit"], near.psf_flux_limit)
    names = tuple(name for name in rows if name != "dia_source_id")
    return from_structured(to_structured(rows, DIA_FORCED_SOURCE), DIA_FORCED_SOURCE, names)


def plan_precovery(database: PromptDatabase, objects: Table, days: float) -> tuple[list[ProductTask], float]:
    """Return what is to be measured, by visit, then detector, and the time (MJD TAI) of the newest visit.

    What the database has a forced source of already is left out.
    """
    if not len(objects["dia_object_id"]):
        return [], -np.inf
    since = float(objects["first_dia_source_mjd_tai"].min()) - days
    visits = database.detector_visits(since, np.inf)
    _, forced = database.history(objects["dia_object_id"], since, source_columns=("dia_source_id",), forced_columns=KEY)
    measured = {*zip(*(forced[name].tolist() for name in KEY), strict=True)}
    tasks = []
    for row, covered in covered_objects(visits, objects, days):
        visit, detector = int(visits["visit"][row]), int(visits["detector"][row])
        missing = [i for i in covered if (int(objects["dia_object_id"][i]), visit, detector) not in measured]
        if missing:
            tasks.append(ProductTask(visit, detector, {name: objects[name][missing] for name in POSITION}))
    return tasks, float(np.max(visits["midpoint_mjd_tai"], initial=-np.inf))


def covered_objects(visits: Table, objects: Table, days: float) -> Iterator[tuple[int, Array]]:
    """Yield (row of ``visits``, rows of ``objects`` on its footprint), by visit, then detector, where there are any.

    An object counts from ``days`` before its first source on.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(unit_vectors(objects["ra"], objects["dec"]))
    corners = np.stack([np.stack([visits[ra], visits[dec]], axis=-1) for ra, dec in CORNERS], axis=1)
    vectors = unit_vectors(corners[..., 0], corners[..., 1])
    centres = vectors.mean(axis=1)
    reach = np.linalg.norm(vectors - centres[:, None], axis=-1).max(axis=1) + np.radians(PADDING_ARCSEC / 3600.0)
    begin = objects["first_dia_source_mjd_tai"] - days
    known = np.isfinite(corners).all(axis=(1, 2))
    for row in (row for row in np.lexsort((visits["detector"], visits["visit"])) if known[row]):
        near = np.sort(np.array(tree.query_ball_point(centres[row], 1.001 * reach[row]), dtype=np.int64))
        near = near[begin[near] <= visits["midpoint_mjd_tai"][row]]
        covered = near[inside_polygon(objects["ra"][near], objects["dec"][near], corners[row], PADDING_ARCSEC)]
        if len(covered):
            yield int(row), covered


def _measure(task: ProductTask, products_dir: str | Path) -> Table:
    return force_from_product(product_path(products_dir, task.visit, task.detector), task.positions)
