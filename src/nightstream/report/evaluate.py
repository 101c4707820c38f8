"""Compare difference-image sources with the truth of a simulation: completeness, false positives, flux pulls.

Matching is in detector pixels, visit by visit and detector by detector. Any real change counts as true: transients,
variables (brighter or fainter than in the template) and asteroids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightstream.engine.values import Table

MATCH_RADIUS_PIX = 3.0
TRAIL_RADIUS_PIX = 8.0  # an asteroid's peak may lie anywhere on its trail
# A source with one of these is not offered as a discovery.
DISQUALIFYING_FLAGS = (
    "psf_flux_flag", "centroid_flag", "star_residual", "is_dipole", "pixel_flags_saturated", "pixel_flags_cr_center",
    "pixel_flags_bad_center", "pixel_flags_edge", "pixel_flags_nodata_center", "pixel_flags_saturated_template",
    "pixel_flags_streak_center",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitScore:
    """How well one visit went, reliable sources only."""

    visit: int
    n_sources: int  # all that were detected
    n_reliable: int  # those without a disqualifying flag
    n_transients: int  # clean injected transients with expected S/N of at least the threshold
    n_recovered: int  # of those
    n_false: int  # reliable sources where nothing changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sources and truth, matched.

    ``sources`` gained `reliable` (bool) and `truth` (row of the nearest true change within reach, -1 for none);
    ``changes`` gained `source` (row of the brightest reliable source at it, -1 for none).
    """

    sources: Table
    changes: Table

    def transients(self, snr: float, below: float = np.inf) -> np.ndarray:
        """Return the rows of ``changes``: clean transients whose expected S/N is in [``snr``, ``below``)."""
        change = self.changes
        wanted = (change["kind"] == "transient") & change["is_clean"].astype(bool)
        return np.flatnonzero(wanted & (change["snr"] >= snr) & (change["snr"] < below))

    def completeness(self, snr: float) -> float:
        """Return the recovered fraction of clean transients with expected S/N of at least ``snr``; NaN if there are none."""
        rows = self.transients(snr)
        return float(np.mean(self.changes["source"][rows] >= 0)) if len(rows) else float("nan")

    def false_positives(self) -> np.ndarray:
        """Return the rows of ``sources``: reliable, but nothing changed there."""
        return np.flatnonzero(self.sources["reliable"] & (self.sources["truth"] < 0))

    def flux_pulls(self, snr: float = 7.0) -> np.ndarray:
        """Return (measured - true flux) / error of the recovered clean transients above ``snr``."""
        rows = self.transients(snr)
        rows = rows[self.changes["source"][rows] >= 0]
        found = self.changes["source"][rows]
        flux, error = self.sources["psf_flux"][found], self.sources["psf_flux_err"][found]
        return (flux - self.changes["difference_flux_njy"][rows]) / error

    def score(self, visit: int, snr: float = 5.0) -> VisitScore:
        """Return the numbers of one visit."""
        here, rows = self.sources["visit"] == visit, self.transients(snr)
        rows = rows[self.changes["visit"][rows] == visit]
        return VisitScore(
            visit=int(visit), n_sources=int(here.sum()), n_reliable=int((here & self.sources["reliable"]).sum()),
            n_transients=len(rows), n_recovered=int((self.changes["source"][rows] >= 0).sum()),
            n_false=int((self.sources["visit"][self.false_positives()] == visit).sum()),
        )  # fmt: skip


def evaluate(sources: Table, changes: Table) -> Evaluation:
    """Match ``sources`` (a DIASource table, host arrays) to ``changes`` (see `nightstream.simulate.truth`)."""
    sources = {name: np.asarray(values) for name, values in sources.items()}
    reliable = is_reliable(sources)
    truth = np.full(len(reliable), -1)
    found = np.full(len(changes["x"]), -1)
    for visit, detector in {*zip(changes["visit"].tolist(), changes["detector"].tolist(), strict=True)}:
        here = np.flatnonzero((sources["visit"] == visit) & (sources["detector"] == detector))
        true = np.flatnonzero((changes["visit"] == visit) & (changes["detector"] == detector))
        truth[here] = _nearest_change(sources, here, changes, true)
    brightness = np.abs(np.where(np.isfinite(sources["snr"]), sources["snr"], 0.0)) if len(reliable) else np.zeros(0)
    for row in np.argsort(brightness, kind="stable"):  # the brightest is written last
        if reliable[row] and truth[row] >= 0:
            found[truth[row]] = row
    return Evaluation(sources=sources | {"reliable": reliable, "truth": truth}, changes=changes | {"source": found})


def is_reliable(sources: Table) -> np.ndarray:
    """Return True for sources that no flag speaks against."""
    flags = [sources[name].astype(bool) for name in DISQUALIFYING_FLAGS if name in sources]
    count = len(sources.get("x", ()))
    return ~np.any(flags, axis=0) if flags else np.ones(count, dtype=bool)


def _nearest_change(sources: Table, here: np.ndarray, changes: Table, true: np.ndarray) -> np.ndarray:
    """Row of the nearest change within reach of each source, -1 for none."""
    if not len(here) or not len(true):
        return np.full(len(here), -1)
    dx = sources["x"][here][:, None] - changes["x"][true][None, :]
    dy = sources["y"][here][:, None] - changes["y"][true][None, :]
    reach = np.where(changes["kind"][true] == "asteroid", TRAIL_RADIUS_PIX, MATCH_RADIUS_PIX)
    distance = np.hypot(dx, dy) / reach
    nearest = np.argmin(distance, axis=1)
    return np.where(distance[np.arange(len(here)), nearest] <= 1.0, true[nearest], -1)


def concatenate(tables: list[Table]) -> Table:
    """Return one table of the rows of all ``tables``; columns that are not in every table are left out."""
    filled = [table for table in tables if table and len(next(iter(table.values())))]
    names = [name for name in filled[0] if all(name in table for table in filled)] if filled else []
    return {name: np.concatenate([np.asarray(table[name]) for table in filled]) for name in names}
