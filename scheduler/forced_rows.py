"""The forced photometry of a visit: a row for every known and new DIAObject on every detector that it lies on.

A worker measures at the objects it was told of before the pixels came, and at its own DIASources, any of which may become an
object. What it could not know, an object that another visit made meanwhile or that a neighbouring detector just found, is
measured from the stored product.
"""

from __future__ import annotations

import numpy as np

from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import predicted_positions
from nightstream.engine.tables import n_rows, stack, take
from nightstream.engine.values import Array, Table
from nightstream.io.products import DetectorTables
from nightstream.scheduler.precover import force_from_product
from nightstream.scheduler.visit_products import VisitProducts

POSITION = ("dia_object_id", "ra", "dec")


def forced_rows(products: VisitProducts, objects: Table, new: Table, config: AssociateConfig) -> Table:
    """Return the rows of all detectors, by detector, then object.

    ``objects`` are the known ones (any that lie elsewhere are passed over), ``new`` the DIASources that became objects, with
    their dia_object_id.
    """
    known = predicted_positions(objects, products.midpoint_mjd_tai, config)
    wanted = stack([known, {name: new[name] for name in POSITION}])
    return stack(_detector_rows(products, detector, wanted, new) for detector in products.detectors)


def _detector_rows(products: VisitProducts, detector: int, wanted: Table, new: Table) -> Table:
    tables = products.tables[detector]
    inside = take(wanted, _is_inside(tables, wanted)) if n_rows(wanted) else wanted
    measured = _measured(tables.forced_sources, inside["dia_object_id"], new)
    missing = ~np.isin(inside["dia_object_id"], measured["dia_object_id"])
    rows = [measured]
    if missing.any():
        rows.append(force_from_product(products.paths[detector], take(inside, missing)))
    both = stack(rows)
    return take(both, np.argsort(both["dia_object_id"], kind="stable"))


def _measured(forced: Table, wanted: Array, new: Table) -> Table:
    """The worker's rows of the objects ``wanted``; those at DIASources that became objects get their number."""
    ids = forced["dia_object_id"].copy()
    order = np.argsort(new["dia_source_id"])
    place = np.searchsorted(new["dia_source_id"], forced["dia_source_id"], sorter=order)
    place = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(ids), int)
    if len(order):
        is_new = (ids == 0) & (new["dia_source_id"][place] == forced["dia_source_id"])
        ids[is_new] = new["dia_object_id"][place[is_new]]
    table = {name: column for name, column in forced.items() if name != "dia_source_id"} | {"dia_object_id": ids}
    table = take(table, np.isin(ids, wanted) & (ids != 0))
    _, first = np.unique(table["dia_object_id"], return_index=True)
    return take(table, first)


def _is_inside(tables: DetectorTables, positions: Table) -> Array:
    """Which positions have their nearest pixel on the detector."""
    x, y = tables.wcs.pixel_from_sky(positions["ra"], positions["dec"])
    ny, nx = tables.shape
    return (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5)
