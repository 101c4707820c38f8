"""A simulated survey of two 256-pixel detectors, its calibrations and templates: the whole engine in seconds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.template import build_template
from nightstream.io.calibrations import read_calibrations, write_calibrations
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.catalogues import read_reference
from nightstream.io.raw import read_raw
from nightstream.io.templates import write_template
from nightstream.simulate.survey import Survey, simulate_survey

CAMERA = Path(__file__).with_name("small_camera.yaml")


@dataclass(frozen=True)
class SmallSurvey:
    """Where everything lies; nobody changes it, see `copy_to`."""

    root: Path
    visits: tuple[int, ...]  # science

    @property
    def calibrations(self) -> Path:
        return self.root / "calibrations"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def positions(self) -> Path:
        return self.root / "positions.h5"

    @property
    def ephemerides(self) -> Path:
        return self.root / "ephemerides.h5"

    @property
    def science(self) -> Path:
        """Folder of the science raws."""
        return self.root / "raw" / "science"

    def raw(self, visit: int, detector: int) -> Path:
        return self.science / f"{visit}_{detector:03d}.fits"

    def calibration(self, detector: int) -> Path:
        return self.calibrations / "small" / f"detector={detector:03d}.h5"

    def template(self, detector: int) -> Path:
        return self.templates / "band=r" / f"detector={detector:03d}.h5"

    def copy_to(self, root: Path) -> SmallSurvey:
        """Return a copy that a test may break."""
        for name in ("calibrations", "templates", "raw/science"):
            shutil.copytree(self.root / name, root / name)
        shutil.copy(self.positions, root)
        return SmallSurvey(root, self.visits)


def build_survey(root: Path) -> SmallSurvey:
    """Simulate, calibrate and make the templates, as the commands do."""
    survey = simulate_survey(
        root, camera=str(CAMERA), n_detectors=2, n_template_visits=2, n_science_visits=2, n_bias=3, n_dark=2, n_flat=2, seed=1
    )
    made = SmallSurvey(root, tuple(visit.id for visit in survey.visits if visit.role == "science"))
    for detector in survey.detectors:
        _calibrate(survey, detector, made)
        _make_template(survey, detector, made)
    return made


def _calibrate(survey: Survey, detector: int, made: SmallSurvey) -> None:
    config, camera = engine_config(survey.camera), survey.camera
    frames = [[read_raw(path, camera) for path in survey.raws(role, detector)] for role in ("bias", "dark", "flat")]
    built = build_calibrations(*frames, camera.detectors[detector], config.calibrate, config.isr)
    write_calibrations(made.calibrations, camera.name, built)


def _make_template(survey: Survey, detector: int, made: SmallSurvey) -> None:
    geometry, config = survey.camera.detectors[detector], engine_config(survey.camera)
    calibrations = read_calibrations(made.calibrations, survey.camera.name, geometry)
    reference = read_reference(survey.reference_path)
    pipeline = DetectorPipeline(geometry, calibrations, None, config, "cpu", reference=reference)
    raws = (read_raw(path, survey.camera) for path in survey.raws("template", detector))
    exposures = [done.exposure for done in calibrate_together(pipeline, raws)]
    write_template(made.templates, detector, build_template(exposures, config.template))


def load_small_camera():
    """The camera of the survey."""
    return load_camera(str(CAMERA))
