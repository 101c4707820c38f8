"""Fifty visits of one field as catalogues, with known truth, and the least prompt database that association needs.

Nothing here is measured on pixels: every source is its true position plus the Gaussian noise that its errors claim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sky_tables import MJD, make_predictions, make_sources

from nightstream.engine.associate import associate
from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import DAYS_PER_YEAR

RA, DEC = 359.99, -28.0  # the field lies across 0 h
SIDE = 1000.0  # arcsec
OVERLAP = 40.0  # arcsec that neighbouring detectors share
N_VISITS, N_VARIABLES, N_PAIRS, N_FAST, N_SUPERNOVAE = 50, 900, 60, 20, 60
N_ASTEROIDS, N_UNKNOWN, N_ARTIFACTS, N_FLAGGED = 20, 8, 30, 60  # a visit
N_PERSISTENT = N_VARIABLES + N_FAST + N_SUPERNOVAE


@dataclass
class Truth:
    """What is there for good: n places (arcsec from the field's middle), motions, and when each can be seen."""

    east: np.ndarray
    north: np.ndarray
    motion: np.ndarray  # (2, n) arcsec/yr
    first: np.ndarray  # visit
    last: np.ndarray
    chance: np.ndarray  # of being detected in a visit
    snr: np.ndarray

    @classmethod
    def draw(cls, rng) -> Truth:
        n = N_PERSISTENT
        east, north = rng.uniform(-SIDE / 2, SIDE / 2, (2, n))
        angle, apart = rng.uniform(0, 2 * np.pi, N_PAIRS), rng.uniform(1.0, 3.0, N_PAIRS)
        one, two = np.arange(N_PAIRS), np.arange(N_PAIRS) + N_PAIRS
        east[two], north[two] = east[one] + apart * np.cos(angle), north[one] + apart * np.sin(angle)
        motion = np.zeros((2, n))
        direction = rng.uniform(0, 2 * np.pi, N_FAST)
        motion[:, N_VARIABLES:][:, :N_FAST] = rng.uniform(0.3, 1.0, N_FAST) * [np.cos(direction), np.sin(direction)]
        first, last = np.zeros(n, int), np.full(n, N_VISITS)
        first[-N_SUPERNOVAE:] = rng.integers(0, N_VISITS - 10, N_SUPERNOVAE)
        last[-N_SUPERNOVAE:] = first[-N_SUPERNOVAE:] + 15
        return cls(east, north, motion, first, last, rng.uniform(0.3, 1.0, n), 10 ** rng.uniform(0.75, 2.0, n))

    def seen(self, rng, visit: int, years: float):
        """Return who is detected in a visit, and where."""
        who = np.flatnonzero((self.first <= visit) & (visit < self.last) & (rng.random(len(self.east)) < self.chance))
        place = np.stack([self.east, self.north]) + self.motion * years
        return who, place[:, who]


@dataclass
class Catalogue:
    """DIAObjects with straight motions fitted to all their sources, kept as sums; and every source that was stored."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))  # w, wt, wtt, wx, wy, wtx, wty
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, ids, east, north, sigma, years) -> None:
        """Put sources into their objects; numbers not known make new ones."""
        new = np.setdiff1d(ids, self.ids)
        self.ids, self.sums = np.concatenate([self.ids, new]), np.concatenate([self.sums, np.zeros((len(new), 7))])
        order = np.argsort(self.ids)
        self.ids, self.sums = self.ids[order], self.sums[order]
        w = sigma**-2.0
        t = np.full(len(w), years)
        terms = np.stack([w, w * t, w * t * t, w * east, w * north, w * t * east, w * t * north], axis=1)
        np.add.at(self.sums, np.searchsorted(self.ids, ids), terms)

    def objects(self):
        """Return the table of DIAObjects: weighted means at the mean time, motions where there are two times or more."""
        w, wt, wtt, wx, wy, wtx, wty = self.sums.T
        t = wt / w
        spread = wtt - wt * t
        with np.errstate(divide="ignore", invalid="ignore"):
            motion = np.where(spread > 1e-9 * w, [(wtx - wx * t) / spread, (wty - wy * t) / spread], np.nan)
            error = np.where(spread > 1e-9 * w, spread**-0.5, np.nan)
        table = make_sources(wx / w, wy / w, ra=RA, dec=DEC, error=w**-0.5)
        errors = {name: table[name] for name in ("ra", "dec", "ra_err", "dec_err")}
        motions = {"pm_ra": 1000 * motion[0], "pm_dec": 1000 * motion[1], "pm_ra_err": 1000 * error, "pm_dec_err": 1000 * error}
        return {"dia_object_id": self.ids, "radec_mjd_tai": MJD + DAYS_PER_YEAR * t} | errors | motions


def observe(truth: Truth, rng, visit: int, mjd: float):
    """Return (sources, who each is, offsets (2, n) arcsec, errors, predictions) of a visit.

    ``who``: the row of the truth, or -1 a known asteroid, -2 an unknown one, -3 an artifact.
    """
    who, place = truth.seen(rng, visit, (mjd - MJD) / DAYS_PER_YEAR)
    moving = rng.uniform(-SIDE / 2, SIDE / 2, (2, N_ASTEROIDS + N_UNKNOWN))
    junk = rng.uniform(-SIDE / 2, SIDE / 2, (2, N_ARTIFACTS + N_FLAGGED))
    kind = np.repeat([-1, -2, -3], [N_ASTEROIDS, N_UNKNOWN, N_ARTIFACTS + N_FLAGGED])
    snr = np.concatenate([truth.snr[who], rng.uniform(6, 50, len(kind))])
    who, place = np.concatenate([who, kind]), np.concatenate([place, moving, junk], axis=1)
    is_flagged = np.arange(len(who)) >= len(who) - N_FLAGGED
    tables, rows = [], []
    for detector in range(4):
        x, y = np.where(np.array([detector % 2, detector // 2]) == 0, -1, 1)
        on = np.flatnonzero((x * place[0] > -OVERLAP / 2) & (y * place[1] > -OVERLAP / 2))
        sigma = np.hypot(0.5 / snr[on], 0.01)  # arcsec: seeing / signal to noise, and a little of the frame
        measured = place[:, on] + rng.normal(0, sigma, (2, len(on)))
        tables.append((measured, sigma, on, np.full(len(on), detector)))
        rows.append(on)
    measured, sigma, row, detector = (np.concatenate(part, axis=-1) for part in zip(*tables, strict=True))
    number = (visit * 4 + detector) * 10_000 + np.arange(len(row)) + 1
    sources = make_sources(*measured, ra=RA, dec=DEC, error=sigma, ids=number, detector=detector, mjd=mjd, snr=snr[row])
    sources["centroid_flag"] = is_flagged[row]
    off = moving[:, :N_ASTEROIDS] + rng.normal(0, 0.1, (2, N_ASTEROIDS))
    predictions = make_predictions(*off, ra=RA, dec=DEC, error=0.1, mjd=mjd, ids=np.arange(N_ASTEROIDS) + visit * 100 + 1)
    return sources, who[row], measured, sigma, predictions


def run_survey(seed: int):
    """Associate visit after visit; return (truth, the table of all sources with who they are and what became of them)."""
    rng = np.random.default_rng(seed)
    truth, catalogue, config = Truth.draw(rng), Catalogue(), AssociateConfig()
    log = []
    for visit in range(N_VISITS):
        mjd = MJD + visit * DAYS_PER_YEAR / N_VISITS
        sources, who, measured, sigma, predictions = observe(truth, rng, visit, mjd)
        found = associate(sources, catalogue.objects() if len(catalogue.ids) else {}, config, ephemerides=predictions)
        has = found.dia_object_id != 0
        catalogue.add(found.dia_object_id[has], *measured[:, has], sigma[has], (mjd - MJD) / DAYS_PER_YEAR)
        names = ("dia_object_id", "ss_object_id", "is_new", "is_marginal", "is_duplicate", "is_stored")
        table = {name: getattr(found, name) for name in names}
        log.append(table | {"who": who, "visit": np.full(len(who), visit), "east": measured[0], "north": measured[1]})
    return truth, {name: np.concatenate([part[name] for part in log]) for name in log[0]}
