"""The stamps of a visit's alerts as FITS files, made in a thread of their own while others do something else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from nightstream.engine.tables import n_rows
from nightstream.engine.values import Table
from nightstream.io.alerts.cutout_fits import CutoutFiles
from nightstream.io.products import read_cutouts
from nightstream.scheduler.visit_products import VisitProducts

KINDS = ("difference", "science", "template")

Cutouts = tuple[list[memoryview], ...]  # FITS files of each kind, one a source


class VisitStamps:
    """Reads the stamps of all detectors from the moment it is made. Use as a context, which waits for the thread to end."""

    def __init__(self, products: VisitProducts) -> None:
        self._products = products
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stamps")
        self._of_detector: Future[dict[int, CutoutFiles]] = self._pool.submit(self._read)

    def __enter__(self) -> VisitStamps:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def files(self, chunks: Iterator[Table]) -> Iterator[tuple[Table, Cutouts]]:
        """Yield each table of sources with their files, in its order; those of the next one are made meanwhile.

        Raises what reading the products raises, with their paths.
        """
        made: tuple[Table, Future[Cutouts]] | None = None
        for chunk in chunks:
            after = chunk, self._pool.submit(self._make, chunk)
            if made is not None:
                yield made[0], made[1].result()
            made = after
        if made is not None:
            yield made[0], made[1].result()

    def _read(self) -> dict[int, CutoutFiles]:
        products = self._products
        return {d: CutoutFiles(read_cutouts(products.paths[d]), products.tables[d].wcs) for d in products.detectors}

    def _make(self, sources: Table) -> Cutouts:
        return tuple(self._of_kind(kind, sources) for kind in KINDS)

    def _of_kind(self, kind: str, sources: Table) -> list[memoryview]:
        files: list[memoryview] = [memoryview(b"")] * n_rows(sources)
        for detector in np.unique(sources["detector"]).tolist():
            places = np.flatnonzero(sources["detector"] == detector)
            ids = self._products.tables[detector].dia_sources["dia_source_id"]
            rows = np.searchsorted(ids, sources["dia_source_id"][places])
            made = self._of_detector.result()[detector].files(kind, rows)
            for place, file in zip(places.tolist(), made, strict=True):
                files[place] = file
        return files
