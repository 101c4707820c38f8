"""A small survey: plans the visits, draws the sky through telescope and detectors, writes raws, reference and
truth.

<output>/raw/{bias,dark,flat,template,science}/<visit>_<detector>.fits   one detector exposure a file
<output>/reference.h5    catalogue for registration, as a survey before this one would have measured it
<output>/positions.h5    transients and variables, to force photometry at
<output>/ephemerides.h5  where the known asteroids should be in each science visit
<output>/truth.h5        what is true: `nightstream.simulate.truth` says what is in it
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.camera import Camera, Detector
from nightstream.engine.values import Table
from nightstream.errors import ConfigError
from nightstream.io.cameras import load_camera
from nightstream.kernels.wcs import Wcs
from nightstream.simulate import truth as truth_tables
from nightstream.simulate.detector import DetectorTruth, expose, make_detector_truth
from nightstream.simulate.files import write_raw
from nightstream.simulate.psf import MoffatPsf
from nightstream.simulate.random import Stream, generator
from nightstream.simulate.scene import draw_galaxies, draw_points
from nightstream.simulate.sky import Sky, asteroid_positions, make_sky, point_sources

BORESIGHT = (150.0, 2.2)  # ra, dec, deg
BAND, EXPOSURE_S = "r", 30.0
SKY_MAGNITUDE = 21.2  # AB / arcsec^2
GAP_PIX = 60  # between detectors
CALIBRATION_NIGHT, FIRST_TEMPLATE_NIGHT, SCIENCE_NIGHT = 20270110, 20270101, 20270120
MJD_OF_JANUARY_0_2027 = 61405.0
MINUTES_BETWEEN_VISITS = 10.0
POINTING_ERROR_ARCSEC, ROTATION_ERROR_DEG, DITHER_ARCSEC = 3.0, 0.02, 4.0
FLAT_ELECTRONS, DARK_S, FLAT_S = 30000.0, 120.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One exposure of the whole camera, as it truly was."""

    id: int
    role: str  # "bias", "dark", "flat", "template", "science"
    midpoint_mjd_tai: float
    exposure_time_s: float
    dark_time_s: float
    fwhm_arcsec: float = 0.0
    transparency: float = 1.0
    sky_magnitude: float = SKY_MAGNITUDE
    boresight: tuple[float, float] = BORESIGHT  # true
    rotation_deg: float = 0.0  # true position angle of +y
    header_boresight: tuple[float, float] = BORESIGHT  # what the telescope believed
    header_rotation_deg: float = 0.0
    lamp_electrons: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was simulated and where it lies."""

    output: Path
    camera: Camera
    detectors: tuple[int, ...]
    visits: tuple[Visit, ...]
    seed: int

    @property
    def truth_path(self) -> Path:
        return self.output / "truth.h5"

    @property
    def reference_path(self) -> Path:
        return self.output / "reference.h5"

    @property
    def positions_path(self) -> Path:
        return self.output / "positions.h5"

    @property
    def ephemerides_path(self) -> Path:
        return self.output / "ephemerides.h5"

    def raw_path(self, visit: Visit, detector: int) -> Path:
        """File of one detector exposure."""
        return self.output / "raw" / visit.role / f"{visit.id}_{detector:03d}.fits"

    def raws(self, role: str, detector: int | None = None) -> list[Path]:
        """Files of one role, of one detector or of all, in order of visit, then detector."""
        detectors = self.detectors if detector is None else (detector,)
        return [self.raw_path(visit, d) for visit in self.visits if visit.role == role for d in detectors]


@dataclass(frozen=True, slots=True)
class Optics:
    """Where a detector lies on the focal plane (its pixel (0, 0), boresight at the origin) and the plane's
    half size."""

    origin: tuple[float, float]
    radius_pix: float

    def wcs(self, boresight: tuple[float, float], rotation_deg: float, scale_arcsec: float) -> Wcs:
        """TAN of the detector's pixels for a telescope that points at ``boresight``."""
        return Wcs.tan(*boresight, -self.origin[0], -self.origin[1], scale_arcsec, angle_deg=rotation_deg)

    def vignetting(self, shape: tuple[int, int]) -> np.ndarray:
        """Share of the light that arrives, (ny, nx): 1 on the axis, 8 % less at the focal plane's half
        size."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        radius2 = (x + self.origin[0]) ** 2 + (y + self.origin[1]) ** 2
        return 1.0 - 0.08 * radius2 / self.radius_pix**2


def simulate_survey(
    output_dir: str | Path,
    *,
    camera: str = "simulator",
    n_detectors: int = 2,
    n_template_visits: int = 4,
    n_science_visits: int = 4,
    n_bias: int = 7,
    n_dark: int = 3,
    n_flat: int = 4,
    seed: int = 1,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Simulate a survey into ``output_dir`` and return what it is; the same arguments give the same bits.

    ``workers`` processes share the exposures; ``progress(done, total)`` is called after each file.
    """
    plan = plan_survey(output_dir, camera=camera, n_detectors=n_detectors, seed=seed, counts={
        "bias": n_bias, "dark": n_dark, "flat": n_flat, "template": n_template_visits, "science": n_science_visits,
    })  # fmt: skip
    sky = survey_sky(plan)
    for visit in plan.visits:
        plan.raw_path(visit, 0).parent.mkdir(parents=True, exist_ok=True)
    truth_tables.write_reference(plan.reference_path, sky.stars, generator(seed, Stream.REFERENCE))
    truth_tables.write_positions(plan.positions_path, sky)
    truth_tables.write_ephemerides(plan.ephemerides_path, sky, plan.visits, generator(seed, Stream.EPHEMERIDES))
    tasks = [(visit, detector) for detector in plan.detectors for visit in plan.visits]
    records = []
    for record in _run(functools.partial(simulate_exposure, plan, sky), tasks, workers):
        records.append(record)
        if progress is not None:
            progress(len(records), len(tasks))
    truth_tables.write_truth(plan.truth_path, sky, records, plan.visits)
    return plan


def plan_survey(output_dir: str | Path, *, camera: str, n_detectors: int, seed: int, counts: dict[str, int]) -> Survey:
    """Decide every visit: identity, time, conditions, pointing. ``counts`` is the number of visits of each
    role."""
    loaded = load_camera(camera)
    if not 1 <= n_detectors <= len(loaded.detectors):
        raise ConfigError(f"got {n_detectors} detectors, wanted 1 to {len(loaded.detectors)} of camera {loaded.name!r}")
    detectors = tuple(sorted(loaded.detectors))[:n_detectors]
    visits = [_calibration_visit(role, i, seed) for role in ("bias", "dark", "flat") for i in range(counts[role])]
    visits += [_sky_visit("template", FIRST_TEMPLATE_NIGHT + i, 1, seed) for i in range(counts["template"])]
    visits += [_sky_visit("science", SCIENCE_NIGHT, 1 + i, seed) for i in range(counts["science"])]
    return Survey(output=Path(output_dir), camera=loaded, detectors=detectors, visits=tuple(visits), seed=seed)


def survey_sky(plan: Survey) -> Sky:
    """The sky over the detectors of ``plan``."""
    boxes = []
    for detector in plan.detectors:
        (x, y), (ny, nx) = detector_optics(plan, detector).origin, plan.camera.detectors[detector].shape
        boxes.append((x, x + nx, y, y + ny))
    frame = Wcs.tan(*BORESIGHT, 0.0, 0.0, plan.camera.pixel_scale_arcsec)
    epochs = [visit.midpoint_mjd_tai for visit in plan.visits if visit.role == "science"]
    epochs = np.array(epochs or [_mjd(SCIENCE_NIGHT * 1000)])
    return make_sky(frame, boxes, epochs, generator(plan.seed, Stream.SKY))


def detector_optics(plan: Survey, detector: int) -> Optics:
    """Detectors stand in rows of two around the boresight."""
    ny, nx = plan.camera.detectors[detector].shape
    index = plan.detectors.index(detector)
    x = (index % 2 - 1.0) * (nx + GAP_PIX) + 0.5 * GAP_PIX
    y = (index // 2 - 1.0) * (ny + GAP_PIX) + 0.5 * GAP_PIX
    return Optics((x, y), 1.5 * (max(nx, ny) + GAP_PIX))


def simulate_exposure(plan: Survey, sky: Sky, task: tuple[Visit, int]) -> dict:
    """Write the raw of one (visit, detector); return what the truth tables keep of it."""
    visit, detector_id = task
    detector, optics = plan.camera.detectors[detector_id], detector_optics(plan, detector_id)
    built = _built(detector, optics, plan.seed)
    light, sources = None, {}
    if visit.role == "flat":
        light = np.full(detector.shape, visit.lamp_electrons, dtype=np.float32)
    elif visit.role in ("template", "science"):
        light, sources = observe(plan, sky, visit, detector, optics)
    pixels, rays = expose(built, light, dark_time_s=visit.dark_time_s, seed=plan.seed, exposure=visit.id)
    scale = plan.camera.pixel_scale_arcsec
    header_wcs = optics.wcs(visit.header_boresight, visit.header_rotation_deg, scale)
    write_raw(plan.raw_path(visit, detector_id), pixels, detector, header_cards(plan, visit, detector), header_wcs)
    record = {
        "visit": visit.id, "detector": detector_id, "role": visit.role,
        "cosmic_ray_pixels": int(np.count_nonzero(rays > 100.0)), "cosmic_ray_electrons": float(rays.sum()),
    }  # fmt: skip
    if visit.role == "science":
        record["changes"] = changes(plan, sky, visit, built, light, sources)
    return record


@functools.lru_cache(maxsize=1)
def _built(detector: Detector, optics: Optics, seed: int) -> DetectorTruth:
    return make_detector_truth(detector, seed, optics.vignetting(detector.shape))


def observe(plan: Survey, sky: Sky, visit: Visit, detector: Detector, optics: Optics) -> tuple[np.ndarray, Table]:
    """Return the expected light, electron a pixel of unit response (ny, nx) float32, and the point sources in
    it."""
    scale = plan.camera.pixel_scale_arcsec
    wcs = optics.wcs(visit.boresight, visit.rotation_deg, scale)
    psf = visit_psf(plan, visit, optics)
    background = electrons_per_njy(plan.camera, visit) / visit.transparency
    background *= 10.0 ** (0.4 * (31.4 - visit.sky_magnitude)) * scale**2
    light = np.full(detector.shape, background, dtype=np.float32)
    points = place_points(plan, sky, visit, wcs)
    draw_points(light, points, psf, np.sqrt(background))
    draw_galaxies(light, place_galaxies(plan, sky, visit, wcs), psf)
    return light, points


def electrons_per_njy(camera: Camera, visit: Visit) -> float:
    """Electrons that a source of 1 nJy leaves in the exposure."""
    zero_point = camera.zero_points.get(BAND, camera.default_zero_point)
    return visit.exposure_time_s * visit.transparency * 10.0 ** (0.4 * (zero_point - 31.4))


def visit_psf(plan: Survey, visit: Visit, optics: Optics) -> MoffatPsf:
    """The point-spread function of one visit: its seeing and a tilt and ellipticity pattern of its own."""
    rng = generator(plan.seed, Stream.OBSERVING, visit.id, 1)
    tilt, e1, e2 = rng.normal(0.0, 0.02, 4), rng.normal(0.0, 0.02, 4), rng.normal(0.0, 0.02, 4)
    return MoffatPsf(
        fwhm_pix=visit.fwhm_arcsec / plan.camera.pixel_scale_arcsec, origin=optics.origin,
        radius_pix=optics.radius_pix, fwhm_terms=(0.0, *tilt[1:3], abs(tilt[3])), e1_terms=tuple(e1),
        e2_terms=tuple(e2),
    )  # fmt: skip


def place_points(plan: Survey, sky: Sky, visit: Visit, wcs: Wcs) -> Table:
    """All point sources of the sky at the visit's time on the detector's pixels, those outside included."""
    points = point_sources(sky, visit.midpoint_mjd_tai)
    points["x"], points["y"] = wcs.pixel_from_sky(points["ra"], points["dec"])
    points["electrons"] = points["flux_njy"] * electrons_per_njy(plan.camera, visit)
    half = 0.5 * visit.exposure_time_s / 86400.0
    before, after = (asteroid_positions(_moving(points), t) for t in (-half, half))
    x0, y0 = wcs.pixel_from_sky(before["ra"], before["dec"])
    x1, y1 = wcs.pixel_from_sky(after["ra"], after["dec"])
    return points | {"trail_x": x1 - x0, "trail_y": y1 - y0}


def place_galaxies(plan: Survey, sky: Sky, visit: Visit, wcs: Wcs) -> Table:
    """All galaxies on the detector's pixels. Their position angles are those of the focal plane."""
    x, y = wcs.pixel_from_sky(sky.galaxies["ra"], sky.galaxies["dec"])
    return sky.galaxies | {
        "x": x, "y": y, "electrons": sky.galaxies["flux_njy"] * electrons_per_njy(plan.camera, visit),
        "half_light_pix": sky.galaxies["half_light_arcsec"] / plan.camera.pixel_scale_arcsec,
    }  # fmt: skip


def changes(plan: Survey, sky: Sky, visit: Visit, built: DetectorTruth, light: np.ndarray, points: Table) -> Table:
    """What differs from the template on one detector: one row a variable, transient or asteroid inside it."""
    ny, nx = built.detector.shape
    inside = (points["x"] > -0.5) & (points["x"] < nx - 0.5) & (points["y"] > -0.5) & (points["y"] < ny - 0.5)
    rows = np.flatnonzero(inside & (points["kind"] != "star"))
    templates = [other for other in plan.visits if other.role == "template"]
    before = [point_sources(sky, other.midpoint_mjd_tai)["flux_njy"] for other in templates]
    template_flux = np.mean(before, axis=0) if before else np.zeros(len(points["x"]))
    template_flux = np.where(points["kind"] == "asteroid", 0.0, template_flux)
    table = {name: points[name][rows] for name in ("kind", "id", "ra", "dec", "x", "y", "flux_njy")}
    table["template_flux_njy"] = template_flux[rows]
    table["difference_flux_njy"] = table["flux_njy"] - table["template_flux_njy"]
    table["visit"] = np.full(len(rows), visit.id)
    table["detector"] = np.full(len(rows), built.detector.id)
    psf = visit_psf(plan, visit, detector_optics(plan, built.detector.id))
    electrons = table["difference_flux_njy"] * electrons_per_njy(plan.camera, visit)
    measured = truth_tables.expected_snr(built, light, visit.dark_time_s, psf, table, electrons, len(templates))
    return {name: values for name, values in (table | measured).items() if name != "electrons"}


def header_cards(plan: Survey, visit: Visit, detector: Detector) -> dict[str, object]:
    """Header facts of one raw, as `io/cameras/simulator.yaml` expects them."""
    kinds = {"bias": "BIAS", "dark": "DARK", "flat": "FLAT", "template": "OBJECT", "science": "OBJECT"}
    begin = visit.midpoint_mjd_tai - 0.5 * visit.exposure_time_s / 86400.0
    return {
        "INSTRUME": "nightstream-sim", "VISIT": visit.id, "DETECTOR": detector.id, "DETNAME": detector.name,
        "IMGTYPE": kinds[visit.role], "FILTER": "none" if visit.role in ("bias", "dark") else BAND,
        "EXPTIME": visit.exposure_time_s, "DARKTIME": visit.dark_time_s, "MJD-BEG": begin, "SIMSEED": plan.seed,
    }  # fmt: skip


def _moving(points: Table) -> Table:
    """Points as moving objects whose epoch is 0, the middle of the exposure."""
    return {name: points[name] for name in ("ra", "dec", "motion_ra", "motion_dec")} | {"epoch_mjd_tai": 0.0}


def _calibration_visit(role: str, index: int, seed: int) -> Visit:
    first = {"bias": 1, "dark": 101, "flat": 201}[role]
    visit = CALIBRATION_NIGHT * 1000 + first + index
    exposure, dark = {"bias": (0.0, 0.0), "dark": (DARK_S, DARK_S), "flat": (FLAT_S, FLAT_S)}[role]
    lamp = FLAT_ELECTRONS * (1.0 + 0.02 * generator(seed, Stream.OBSERVING, visit).standard_normal())
    return Visit(id=visit, role=role, midpoint_mjd_tai=_mjd(visit), exposure_time_s=exposure, dark_time_s=dark,
                 lamp_electrons=lamp if role == "flat" else 0.0)  # fmt: skip


def _sky_visit(role: str, night: int, sequence: int, seed: int) -> Visit:
    visit = night * 1000 + sequence
    rng = generator(seed, Stream.OBSERVING, visit)
    dither, error = rng.uniform(-DITHER_ARCSEC, DITHER_ARCSEC, 2), rng.normal(0.0, POINTING_ERROR_ARCSEC, 2)
    boresight = _offset(BORESIGHT, dither)
    rotation = rng.normal(0.0, ROTATION_ERROR_DEG)
    return Visit(
        id=visit, role=role, midpoint_mjd_tai=_mjd(visit), exposure_time_s=EXPOSURE_S, dark_time_s=EXPOSURE_S + 2.0,
        fwhm_arcsec=float(rng.uniform(0.72, 0.85) if role == "template" else rng.uniform(0.78, 1.0)),
        transparency=float(rng.uniform(0.85, 1.0)), sky_magnitude=SKY_MAGNITUDE + float(rng.normal(0.0, 0.1)),
        boresight=boresight, rotation_deg=float(rotation), header_boresight=_offset(boresight, error),
    )  # fmt: skip


def _offset(position: tuple[float, float], arcsec: np.ndarray) -> tuple[float, float]:
    ra, dec = position
    return ra + float(arcsec[0]) / 3600.0 / float(np.cos(np.radians(dec))), dec + float(arcsec[1]) / 3600.0


def _mjd(visit: int) -> float:
    """Midpoint of a visit: its night's 4 h TAI plus its place in the night's sequence."""
    night, sequence = divmod(visit, 1000)
    day = (night - 20270100) % 100
    return MJD_OF_JANUARY_0_2027 + day + (240.0 + MINUTES_BETWEEN_VISITS * sequence) / 1440.0


def _run(function: Callable, tasks: list, workers: int) -> Iterator:
    """Results in the order of ``tasks``, from this process or from ``workers``."""
    if workers <= 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, tasks)
