"""The true sky: stars, galaxies, variable stars, transients and moving asteroids. Fluxes nJy, positions ICRS
degrees.

| table      | columns beyond id, ra, dec                                                                  |
|------------|---------------------------------------------------------------------------------------------|
| stars      | flux_njy                                                                                    |
| galaxies   | flux_njy, half_light_arcsec, e1, e2                                                         |
| variables  | flux_njy (mean), amplitude (relative), period_day, phase                                    |
| transients | peak_flux_njy, onset_mjd_tai, decay_day, host (galaxy id, -1 for none)                      |
| asteroids  | flux_njy, epoch_mjd_tai of the position, motion_ra and motion_dec (true angle, arcsec/day), |
|            | ss_object_id (0 for those that nobody has discovered)                                       |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import UnprocessableError
from nightstream.kernels.wcs import Wcs

BRIGHTEST_STAR, FAINTEST_STAR = 15.5, 24.5  # AB magnitude
BRIGHTEST_GALAXY, FAINTEST_GALAXY = 18.5, 24.8
BRIGHTEST_TRANSIENT, FAINTEST_TRANSIENT = 20.0, 24.2
STAR_COUNT_SLOPE, GALAXY_COUNT_SLOPE = 0.15, 0.30  # d log10 N / d magnitude
STARS_PER_ARCMIN2, GALAXIES_PER_ARCMIN2 = 22.0, 14.0
VARIABLE_STARS_PER_ARCMIN2, TRANSIENTS_PER_ARCMIN2 = 0.5, 1.6
TRANSIENT_BORDER_ARCSEC = 14.0  # transients keep off the detectors' edges, where dithers leave no template
TRANSIENT_SPACING_ARCSEC = 5.0
ASTEROID_RATE_ARCSEC_PER_DAY = 4300.0  # 1.5 arcsec in a 30 s exposure
MAIN_BELT_PER_DETECTOR, MAIN_BELT_RATE_ARCSEC_PER_DAY = 2, (400.0, 1100.0)
BRIGHTEST_MAIN_BELT, FAINTEST_MAIN_BELT = 19.5, 22.5
FIRST_SS_OBJECT_ID = 1001
UNDISCOVERED_EVERY = 3  # one asteroid in so many is in no list of orbits


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """All that is true about the sky, one table a kind."""

    stars: Table
    galaxies: Table
    variables: Table
    transients: Table
    asteroids: Table


def flux_from_magnitude(magnitude: np.ndarray | float) -> np.ndarray | float:
    """Return nJy for an AB magnitude."""
    return 10.0 ** (0.4 * (31.4 - magnitude))


def make_sky(frame: Wcs, boxes: list[tuple[float, float, float, float]], epochs: np.ndarray, rng: np.random.Generator) -> Sky:
    """Draw a sky that covers ``boxes``.

    ``frame`` maps focal-plane pixels to the sky and ``boxes`` are the detectors (x0, x1, y0, y1) in those
    pixels. Transients begin before or between the ``epochs`` (MJD TAI) of the science visits; an earlier
    template has none.
    """
    scale = frame.pixel_scale_arcsec
    margin = 60.0  # sources just outside still shine in
    grown = [(x0 - margin, x1 + margin, y0 - margin, y1 + margin) for x0, x1, y0, y1 in boxes]
    field = _union(grown)
    area = (field[1] - field[0]) * (field[3] - field[2]) * (scale / 60.0) ** 2
    stars = _draw_stars(frame, field, int(STARS_PER_ARCMIN2 * area), rng)
    galaxies = _draw_galaxies(frame, field, int(GALAXIES_PER_ARCMIN2 * area), rng)
    variables = _draw_variables(frame, field, max(int(VARIABLE_STARS_PER_ARCMIN2 * area), 2), rng)
    inner = [_shrink(box, TRANSIENT_BORDER_ARCSEC / scale) for box in boxes]
    transients = _draw_transients(frame, inner, (stars, variables), galaxies, epochs, rng)
    asteroids = _draw_asteroids(frame, inner, (stars, variables), transients, epochs, rng)
    tables = (stars, galaxies, variables, transients, asteroids)
    for table in tables:
        for column in ("x", "y"):
            table.pop(column, None)
    return Sky(stars=stars, galaxies=galaxies, variables=variables, transients=transients, asteroids=asteroids)


def point_sources(sky: Sky, mjd: float) -> Table:
    """Return every point source at time ``mjd``: kind, id, ra, dec, flux_njy, motion_ra, motion_dec
    (arcsec/day)."""
    parts = [
        _points("star", sky.stars, sky.stars["flux_njy"]),
        _points("variable", sky.variables, variable_flux(sky.variables, mjd)),
        _points("transient", sky.transients, transient_flux(sky.transients, mjd)),
        _points("asteroid", asteroid_positions(sky.asteroids, mjd), sky.asteroids["flux_njy"]),
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def variable_flux(variables: Table, mjd: float) -> np.ndarray:
    """Return the flux (nJy) of sinusoidal variable stars at ``mjd``."""
    angle = 2.0 * np.pi * (mjd / variables["period_day"] + variables["phase"])
    return variables["flux_njy"] * (1.0 + variables["amplitude"] * np.sin(angle))


def transient_flux(transients: Table, mjd: float) -> np.ndarray:
    """Return the flux (nJy) of transients at ``mjd``: nothing before onset, then an exponential decay from
    the peak."""
    age = mjd - transients["onset_mjd_tai"]
    return np.where(age >= 0.0, transients["peak_flux_njy"] * np.exp(-np.maximum(age, 0.0) / transients["decay_day"]), 0.0)


def asteroid_positions(asteroids: Table, mjd: float) -> Table:
    """Return the asteroids' table with ``ra, dec`` moved to ``mjd`` along a straight line."""
    days = mjd - asteroids["epoch_mjd_tai"]
    dec = asteroids["dec"] + asteroids["motion_dec"] * days / 3600.0
    ra = asteroids["ra"] + asteroids["motion_ra"] * days / 3600.0 / np.cos(np.radians(dec))
    return asteroids | {"ra": ra, "dec": dec}


def _points(kind: str, table: Table, flux: np.ndarray) -> Table:
    zeros = np.zeros(len(flux))
    return {
        "kind": np.full(len(flux), kind, dtype="U10"), "id": table["id"], "ra": table["ra"], "dec": table["dec"],
        "flux_njy": flux, "motion_ra": table.get("motion_ra", zeros), "motion_dec": table.get("motion_dec", zeros),
    }  # fmt: skip


def _union(boxes: list[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    x0, x1, y0, y1 = np.transpose(boxes)
    return float(x0.min()), float(x1.max()), float(y0.min()), float(y1.max())


def _shrink(box: tuple[float, float, float, float], margin: float) -> tuple[float, float, float, float]:
    return box[0] + margin, box[1] - margin, box[2] + margin, box[3] - margin


def _uniform_positions(frame: Wcs, box, count: int, rng: np.random.Generator) -> Table:
    x, y = rng.uniform(box[0], box[1], count), rng.uniform(box[2], box[3], count)
    return _at(frame, x, y)


def _at(frame: Wcs, x: np.ndarray, y: np.ndarray) -> Table:
    ra, dec = frame.sky_from_pixel(x, y)
    return {"id": np.arange(len(x)), "ra": ra, "dec": dec, "x": x, "y": y}


def _magnitudes(bright: float, faint: float, slope: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw magnitudes from dN/dm ~ 10^(slope m)."""
    span = 10.0 ** (slope * (faint - bright)) - 1.0
    return bright + np.log10(1.0 + span * rng.random(count)) / slope


def _draw_stars(frame: Wcs, box, count: int, rng: np.random.Generator) -> Table:
    table = _uniform_positions(frame, box, count, rng)
    magnitude = _magnitudes(BRIGHTEST_STAR, FAINTEST_STAR, STAR_COUNT_SLOPE, count, rng)
    return table | {"flux_njy": flux_from_magnitude(magnitude)}


def _draw_galaxies(frame: Wcs, box, count: int, rng: np.random.Generator) -> Table:
    table = _uniform_positions(frame, box, count, rng)
    magnitude = _magnitudes(BRIGHTEST_GALAXY, FAINTEST_GALAXY, GALAXY_COUNT_SLOPE, count, rng)
    half_light = 0.35 * 10.0 ** (0.08 * (24.0 - magnitude)) * rng.lognormal(0.0, 0.25, count)
    shape, angle = rng.uniform(0.0, 0.4, count), rng.uniform(0.0, 2.0 * np.pi, count)
    return table | {
        "flux_njy": flux_from_magnitude(magnitude), "half_light_arcsec": np.clip(half_light, 0.2, 1.5),
        "e1": shape * np.cos(angle), "e2": shape * np.sin(angle),
    }  # fmt: skip


def _draw_variables(frame: Wcs, box, count: int, rng: np.random.Generator) -> Table:
    table = _uniform_positions(frame, box, count, rng)
    return table | {
        "flux_njy": flux_from_magnitude(rng.uniform(18.0, 22.5, count)), "amplitude": rng.uniform(0.05, 0.5, count),
        "period_day": rng.uniform(0.05, 0.6, count), "phase": rng.random(count),
    }  # fmt: skip


def _draw_transients(frame: Wcs, boxes, avoid, galaxies: Table, epochs, rng: np.random.Generator) -> Table:
    """Half of the transients sit on a galaxy; none on a bright star or close to another."""
    x, y, host = [], [], []
    for box in boxes:
        area = (box[1] - box[0]) * (box[3] - box[2]) * (frame.pixel_scale_arcsec / 60.0) ** 2
        for trial in range(max(int(TRANSIENTS_PER_ARCMIN2 * area), 2)):
            candidates = _inside(galaxies, box) if trial % 2 == 1 else np.array([], dtype=np.int64)
            place = _free_place(frame, box, avoid, galaxies, candidates, (x, y), rng)
            for values, value in zip((x, y, host), place, strict=True):
                values.append(value)
    count = len(x)
    magnitude = rng.uniform(BRIGHTEST_TRANSIENT, FAINTEST_TRANSIENT, count)
    before = rng.random(count) < 0.6
    last = epochs[max(len(epochs) - 2, 0)]
    onset = np.where(before, epochs[0] - 0.01, rng.uniform(epochs[0], last, count))
    return _at(frame, np.array(x), np.array(y)) | {
        "peak_flux_njy": flux_from_magnitude(magnitude), "onset_mjd_tai": onset,
        "decay_day": rng.uniform(0.05, 2.0, count), "host": np.array(host, dtype=np.int64),
    }  # fmt: skip


def _free_place(frame: Wcs, box, avoid, galaxies: Table, candidates: np.ndarray, placed, rng: np.random.Generator):
    """Return (x, y, host) of one transient, host -1 without ``candidates`` (rows of ``galaxies``): redraw until it is
    free of bright stars and of what was ``placed`` earlier."""
    scale = frame.pixel_scale_arcsec
    for _ in range(1000):
        host = int(rng.choice(candidates)) if len(candidates) else -1
        if host >= 0:
            spread = 0.5 * galaxies["half_light_arcsec"][host] / scale
            x, y = (galaxies[axis][host] + rng.normal(0.0, spread) for axis in "xy")
        else:
            x, y = rng.uniform(box[0], box[1]), rng.uniform(box[2], box[3])
        if _is_free(x, y, avoid, placed, scale):
            return float(x), float(y), host
    raise UnprocessableError(f"no free place for a transient in {box}: the sky is too crowded")


def _inside(table: Table, box) -> np.ndarray:
    x, y = table["x"], table["y"]
    return np.flatnonzero((x > box[0]) & (x < box[1]) & (y > box[2]) & (y < box[3]))


def _is_free(x: float, y: float, avoid, placed, scale: float) -> bool:
    """True if no star of ``avoid`` (stars, variables) shines too brightly at ``x, y`` and no placed transient
    is near."""
    for table in avoid:
        distance = np.hypot(table["x"] - x, table["y"] - y) * scale
        keep_off = np.clip(3.0 * (table["flux_njy"] / flux_from_magnitude(21.0)) ** 0.3, 1.2, 25.0)  # arcsec
        if np.any(distance < keep_off):
            return False
    near = np.hypot(np.array(placed[0]) - x, np.array(placed[1]) - y) * scale
    return bool(np.all(near > TRANSIENT_SPACING_ARCSEC))


def _draw_asteroids(frame: Wcs, boxes, avoid, transients: Table, epochs: np.ndarray, rng: np.random.Generator) -> Table:
    """A fast asteroid that crosses the first detector during the science visits, then slow ones on every detector."""
    x0, x1, y0, y1 = boxes[0]
    x, y, flux, angle, rate = [0.5 * (x0 + x1)], [0.5 * (y0 + y1)], [], [], []
    angle.append(rng.uniform(0.0, 2.0 * np.pi))
    flux.append(flux_from_magnitude(rng.uniform(19.5, 20.5)))
    rate.append(ASTEROID_RATE_ARCSEC_PER_DAY)
    placed = [*transients["x"]], [*transients["y"]]
    for box in (box for box in boxes for _ in range(MAIN_BELT_PER_DETECTOR)):
        at_x, at_y, _ = _free_place(frame, box, avoid, {}, np.array([], dtype=np.int64), placed, rng)
        for values, value in zip((x, y, *placed), (at_x, at_y, at_x, at_y), strict=True):
            values.append(value)
        angle.append(rng.uniform(0.0, 2.0 * np.pi))
        flux.append(flux_from_magnitude(rng.uniform(BRIGHTEST_MAIN_BELT, FAINTEST_MAIN_BELT)))
        rate.append(rng.uniform(*MAIN_BELT_RATE_ARCSEC_PER_DAY))
    table, angle, rate = _at(frame, np.array(x), np.array(y)), np.array(angle), np.array(rate)
    is_known = table["id"] % UNDISCOVERED_EVERY != UNDISCOVERED_EVERY - 1
    return table | {
        "flux_njy": np.array(flux), "epoch_mjd_tai": np.full(len(x), np.mean(epochs)),
        "motion_ra": rate * np.cos(angle), "motion_dec": rate * np.sin(angle),
        "ss_object_id": np.where(is_known, FIRST_SS_OBJECT_ID + table["id"], 0),
    }  # fmt: skip
