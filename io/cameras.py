"""Cameras from YAML: the schema of `io/cameras/*.yaml`, its checks, and the engine's `Camera` made from it.

Owns where amplifiers lie and which header keywords mean what; `header.py` evaluates those rules, `raw.py` reads
pixels. Adding a camera is adding a YAML file. Boxes are 0-based, half open: ``{x: [3, 512], y: [0, 2000]}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from nightstream.engine.camera import Amplifier, Box, Camera, Detector
from nightstream.engine.config import EngineConfig
from nightstream.errors import ConfigError, FileError
from nightstream.io.header import HeaderRules, Strict

CAMERA_DIR = Path(__file__).parent / "cameras"
PER_AMPLIFIER = ("gain", "read_noise", "saturation_adu", "suspect_adu")


def _box(value: Any) -> Box:
    """Make a Box from ``{x: [start, stop], y: [start, stop]}``; a Box passes through."""
    if isinstance(value, Box):
        return value
    if not isinstance(value, dict) or set(value) != {"x", "y"} or any(len(span) != 2 for span in value.values()):
        raise ValueError(f"got {value!r}, wanted {{x: [start, stop], y: [start, stop]}}")
    (x0, x1), (y0, y1) = value["x"], value["y"]
    return Box(x0, x1, y0, y1)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


BoxSpec = Annotated[Box, BeforeValidator(_box)]
PerAmplifier = Annotated[tuple[float, ...] | None, BeforeValidator(_listed)]  # one number for all, or one each


class AmplifierSpec(Strict):
    """What is special about one amplifier of a layout: its HDU, its corner on the detector, its mirrors."""

    hdu: int | str
    at: tuple[int, int] = (0, 0)  # x, y of the lower left pixel of its data on the detector
    flip: Literal["", "x", "y", "xy"] = ""  # mirrored along these axes when it is placed
    raw: BoxSpec | None = None  # of its HDU, where it differs from the layout's
    data: BoxSpec | None = None


class Electronics(Strict):
    """Electronic constants, one number for every amplifier or a list in the order of the amplifiers."""

    gain: PerAmplifier = None  # electron / adu
    read_noise: PerAmplifier = None  # electron
    saturation_adu: PerAmplifier = None  # pedestal included
    suspect_adu: PerAmplifier = None  # pedestal included; default: never


class Layout(Electronics):
    """One kind of detector: raw boxes its amplifiers share, and where each lands."""

    width: Annotated[int, Field(gt=0)]  # pixels of the assembled detector
    height: Annotated[int, Field(gt=0)]
    raw: BoxSpec  # part of the HDU that belongs to the amplifier
    data: BoxSpec  # this and the overscans: within ``raw``
    serial_overscan: BoxSpec | None = None
    parallel_overscan: BoxSpec | None = None
    amplifiers: Annotated[dict[str, AmplifierSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Layout:
        placed = {name: self.placed(spec) for name, spec in self.amplifiers.items()}
        shapes = {(spec.raw or self.raw).shape for spec in self.amplifiers.values()}
        if len(shapes) > 1:
            raise ValueError(f"got raw boxes of shapes {sorted(shapes)}, wanted one shape for all amplifiers")
        for name, box in placed.items():
            if box.x1 > self.width or box.y1 > self.height:
                raise ValueError(f"amplifier {name} ends at x {box.x1}, y {box.y1}, outside {self.width} x {self.height}")
        for (name_a, a), (name_b, b) in combinations(placed.items(), 2):
            if min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0):
                raise ValueError(f"amplifiers {name_a} and {name_b} overlap on the detector")
        self._check_inside()
        return self

    def _check_inside(self) -> None:
        height, width = self.raw.shape
        boxes = {
            "data": self.data,
            "serial_overscan": self.serial_overscan,
            "parallel_overscan": self.parallel_overscan,
        }
        boxes |= {f"amplifiers.{name}.data": spec.data for name, spec in self.amplifiers.items()}
        for name, box in boxes.items():
            if box is not None and (box.x1 > width or box.y1 > height):
                raise ValueError(f"{name} ends at x {box.x1}, y {box.y1}, outside the raw box of {width} x {height}")

    def placed(self, spec: AmplifierSpec) -> Box:
        """Box of an amplifier's data on the detector."""
        height, width = (spec.data or self.data).shape
        x, y = spec.at
        return Box(x, x + width, y, y + height)


class DetectorGroup(Electronics):
    """Consecutive detectors of one layout: the first has number ``first_id``."""

    first_id: Annotated[int, Field(ge=0)]
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    layout: str
    defects: dict[str, tuple[BoxSpec, ...]] = {}  # detector name: known bad pixels of its assembled image

    @model_validator(mode="after")
    def _knows_its_defects(self) -> DetectorGroup:
        unknown = set(self.defects) - set(self.names)
        if unknown:
            raise ValueError(f"defects of {sorted(unknown)}, which are not among the group's names")
        return self


class CameraFile(Strict):
    """A whole camera file."""

    name: str
    pixel_scale_arcsec: Annotated[float, Field(gt=0)]
    zero_points: dict[str, float] = {}  # band: AB magnitude giving 1 electron / s
    default_zero_point: float = 25.0
    headers: HeaderRules
    engine: dict[str, dict[str, Any]] = {}  # settings of `EngineConfig` this camera needs: section, field: value
    layouts: dict[str, Layout]
    detectors: Annotated[tuple[DetectorGroup, ...], Field(min_length=1)]

    @field_validator("engine")
    @classmethod
    def _engine_knows(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        EngineConfig.model_validate(settings)
        return settings

    @model_validator(mode="after")
    def _names_layouts(self) -> CameraFile:
        for group in self.detectors:
            if group.layout not in self.layouts:
                wanted = ", ".join(sorted(self.layouts))
                raise ValueError(f"detectors from {group.first_id}: got layout {group.layout!r}, wanted one of {wanted}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCamera(Camera):
    """A `Camera` that also knows how its raw files are written, and which engine settings its pixels need."""

    headers: HeaderRules
    engine: Mapping[str, Mapping[str, Any]]


def list_cameras() -> list[str]:
    """Names that `load_camera` knows without a path, sorted."""
    return sorted(path.stem for path in CAMERA_DIR.glob("*.yaml"))


def load_camera(name_or_path: str | Path) -> RawCamera:
    """Return the camera called ``name_or_path`` (see `list_cameras`), or the one in that YAML file.

    Raises FileError when there is no such camera or file, ConfigError naming file and field when it is
    not valid.
    """
    path = _camera_path(name_or_path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _camera(CameraFile.model_validate(document))
    except ValidationError as error:
        raise ConfigError(_first_problem(error, "camera file"), path=str(path)) from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"camera file: {' '.join(str(error).split())}", path=str(path)) from None


def engine_config(camera: RawCamera, settings: Mapping[str, Mapping[str, Any]] | None = None) -> EngineConfig:
    """Return the engine's defaults, overruled by what ``camera`` needs, overruled by ``settings`` (section, field: value).

    Raises ConfigError naming the field that is unknown or out of range.
    """
    settings = settings or {}
    sections = {name: {**camera.engine.get(name, {}), **settings.get(name, {})} for name in {*camera.engine, *settings}}
    try:
        return EngineConfig.model_validate(sections)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, "engine settings")) from None


def _camera_path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    path = CAMERA_DIR / f"{text}.yaml" if text in list_cameras() else Path(text)
    if not path.is_file():
        raise FileError(f"got camera {text!r}, wanted a YAML file or one of {', '.join(list_cameras())}", path=text)
    return path


def _first_problem(error: ValidationError, what: str) -> str:
    problems = error.errors(include_url=False)
    field = ".".join(str(part) for part in problems[0]["loc"]) or "top level"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    text = "unknown setting" if problems[0]["type"] == "extra_forbidden" else problems[0]["msg"]
    return f"{what}, field {field}: {text}{more}"


def _camera(spec: CameraFile) -> RawCamera:
    detectors: dict[int, Detector] = {}
    for detector in _detectors(spec):
        if detector.id in detectors:
            raise ValueError(f"detector {detector.id} is defined twice")
        detectors[detector.id] = detector
    return RawCamera(
        name=spec.name,
        detectors=detectors,
        pixel_scale_arcsec=spec.pixel_scale_arcsec,
        zero_points=spec.zero_points,
        default_zero_point=spec.default_zero_point,
        headers=spec.headers,
        engine=spec.engine,
    )


def _detectors(spec: CameraFile) -> Iterator[Detector]:
    for group in spec.detectors:
        layout = spec.layouts[group.layout]
        amplifiers = _amplifiers(layout, group)
        for number, name in enumerate(group.names, start=group.first_id):
            shape, defects = (layout.height, layout.width), group.defects.get(name, ())
            yield Detector(id=number, name=name, shape=shape, amplifiers=amplifiers, defects=defects)


def _amplifiers(layout: Layout, group: DetectorGroup) -> tuple[Amplifier, ...]:
    constants = {field: _constants(field, layout, group) for field in PER_AMPLIFIER}
    return tuple(
        Amplifier(
            name=name, hdu=amplifier.hdu, raw=amplifier.raw or layout.raw, data=amplifier.data or layout.data,
            serial_overscan=layout.serial_overscan, parallel_overscan=layout.parallel_overscan,
            detector=layout.placed(amplifier), flip_x="x" in amplifier.flip, flip_y="y" in amplifier.flip,
            **{field: values[index] for field, values in constants.items()},
        )
        for index, (name, amplifier) in enumerate(layout.amplifiers.items())
    )  # fmt: skip


def _constants(field: str, layout: Layout, group: DetectorGroup) -> tuple[float, ...]:
    """Values of one constant for every amplifier: the group's, else the layout's."""
    n_amplifiers = len(layout.amplifiers)
    values = getattr(group, field) or getattr(layout, field)
    if values is None and field == "suspect_adu":
        values = (float("inf"),)
    if values is None or len(values) not in (1, n_amplifiers) or min(values) <= 0:
        wanted = f"1 or {n_amplifiers} positive numbers"
        raise ValueError(f"detectors from {group.first_id}: got {field} {values}, wanted {wanted}")
    return values if len(values) == n_amplifiers else values * n_amplifiers
