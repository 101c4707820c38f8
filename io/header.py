"""FITS headers as values: which keyword means what in a camera, and a header as text.

A camera's YAML says by `Rule`s how its headers spell visit, detector, band, times and kind; `exposure_info`
applies them.
WCS cards, and text back to cards, are in `wcs_cards.py`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nightstream.engine.values import ExposureInfo
from nightstream.errors import InputError
from nightstream.io.clock import SECONDS_PER_DAY, tai_minus_utc_s

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from nightstream.engine.camera import Camera, Detector

KINDS = ("science", "bias", "dark", "flat")
MJD_EPOCH = datetime(1858, 11, 17)


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | int | float) else value


Keywords = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class Rule(Strict):
    """How one fact is read. The steps, in order: find, ``digits``, ``values``, ``add``.

    Found is the first of ``keyword`` that is present and not empty, else ``format`` filled with keywords,
    else ``default``. A plain string in YAML is a keyword. Text not listed in ``values`` stays as it is.
    """

    keyword: Keywords = ()
    format: str | None = None  # for example "{RAFTBAY}_{CCDSLOT}"
    default: str | int | float | None = None
    digits: int | None = None  # keep this many leading digits of the text, dropping everything else
    values: dict[str, str | int | float] | None = None  # text found: value meant
    add: Rule | None = None  # a number to add

    @model_validator(mode="before")
    @classmethod
    def _plain_keyword(cls, value: Any) -> Any:
        return {"keyword": value} if isinstance(value, str) else value


class TimeRule(Strict):
    """Where a time stands: ISO text or MJD, its scale, and which moment of the exposure it is."""

    keyword: str
    scale: Literal["utc", "tai"]
    at: Literal["start", "middle", "end"]


class HeaderRules(Strict):
    """How a camera's raw files say what they are. ``match`` holds shell patterns that identify the camera."""

    match: dict[str, Keywords]
    visit: Rule
    detector: Rule  # its number or its name
    kind: Rule  # science, bias, dark or flat; a dark of 0 s is a bias
    band: Rule
    exposure_time: Rule  # s
    dark_time: Rule | None = None  # s; default: the exposure time
    midpoint: Annotated[tuple[TimeRule, ...], Field(min_length=1)]  # the first one present counts
    wcs_frame: Literal["detector", "raw"] | None = None  # pixels the header's WCS speaks of: assembled, or the first HDU's


def header_text(header: Header) -> str:
    """Cards of ``header``, newline separated, without padding; CONTINUE cards are kept."""
    return header.tostring(sep="\n", endcard=False, padding=False)


def check_camera(header: Header, camera: str, rules: HeaderRules) -> None:
    """Raise InputError, saying got and wanted, unless ``header`` was written by that camera."""
    for keyword, patterns in rules.match.items():
        got = str(header.get(keyword, "")).strip()
        if not any(fnmatchcase(got, pattern) for pattern in patterns):
            wanted = " or ".join(repr(pattern) for pattern in patterns)
            raise InputError(f"wrong camera: got {keyword} {got!r}, wanted {wanted} for camera {camera!r}")


def find_detector(header: Header, camera: Camera, rules: HeaderRules) -> Detector:
    """Return the detector the header names, by number or name. InputError when the camera has none such."""
    value = _evaluate(header, rules.detector, "detector")
    for detector in camera.detectors.values():
        if str(value) == detector.name or _as_number(value) == detector.id:
            return detector
    raise InputError(f"got detector {value!r}, wanted one of the {len(camera.detectors)} detectors of {camera.name!r}")


def read_visit(header: Header, rules: HeaderRules) -> int:
    """Return the visit number."""
    return _integer(_evaluate(header, rules.visit, "visit"), "visit")


def exposure_info(header: Header, camera: Camera, rules: HeaderRules, detector: int, path: str = "") -> ExposureInfo:
    """Facts of one detector exposure. InputError names the fact that is missing or makes no sense."""
    exposure_s = _seconds(header, rules.exposure_time, "exposure_time")
    kind = str(_evaluate(header, rules.kind, "kind"))
    if kind not in KINDS:
        raise InputError(f"got exposure kind {kind!r}, wanted one of {', '.join(KINDS)}")
    band = str(_evaluate(header, rules.band, "band"))
    return ExposureInfo(
        visit=read_visit(header, rules),
        detector=detector,
        camera=camera.name,
        kind="bias" if kind == "dark" and exposure_s == 0 else kind,
        band=band,
        exposure_time_s=exposure_s,
        dark_time_s=_seconds(header, rules.dark_time, "dark_time") if rules.dark_time else exposure_s,
        midpoint_mjd_tai=_midpoint(header, rules.midpoint, exposure_s),
        zero_point=camera.zero_points.get(band, camera.default_zero_point),
        path=path,
        header=header_text(header),
    )


def _evaluate(header: Mapping[str, Any], rule: Rule, fact: str) -> str | int | float:
    value = _find(header, rule)
    if value is None:
        raise InputError(f"header tells no {fact}: wanted keyword {' or '.join(rule.keyword) or rule.format}")
    if rule.digits is not None:
        value = "".join(c for c in str(value) if c.isdigit())[: rule.digits]
    if rule.values is not None:
        value = rule.values.get(str(value).strip(), value)
    if rule.add is not None:
        value = _integer(value, fact) + _integer(_evaluate(header, rule.add, fact), fact)
    return value.strip() if isinstance(value, str) else value


def _find(header: Mapping[str, Any], rule: Rule) -> Any:
    """First non-empty keyword, else the filled format, else the default."""
    found = [header[key] for key in rule.keyword if str(header.get(key, "")).strip()]
    if found:
        return found[0]
    if rule.format is not None:
        names = [name for _, name, _, _ in string.Formatter().parse(rule.format) if name is not None]
        if all(name in header for name in names):
            return string.Formatter().vformat(rule.format, (), {name: header[name] for name in names})
    return rule.default


def _as_number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _integer(value: Any, fact: str) -> int:
    number = _as_number(value)
    if number is None:
        raise InputError(f"got {fact} {value!r}, wanted an integer")
    return number


def _seconds(header: Header, rule: Rule, fact: str) -> float:
    value = _evaluate(header, rule, fact)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"got {fact} {value!r}, wanted seconds >= 0")
    return seconds


def _midpoint(header: Header, rules: tuple[TimeRule, ...], exposure_s: float) -> float:
    """MJD (TAI) of the middle of the exposure, from the first time that is there."""
    rule = next((rule for rule in rules if str(header.get(rule.keyword, "")).strip()), None)
    if rule is None:
        raise InputError(f"header tells no time: wanted keyword {' or '.join(rule.keyword for rule in rules)}")
    shift = {"start": 0.5, "middle": 0.0, "end": -0.5}[rule.at] * exposure_s / SECONDS_PER_DAY
    return _mjd_tai(header[rule.keyword], rule) + shift


def _mjd_tai(value: Any, rule: TimeRule) -> float:
    """MJD (TAI) of ISO text or of an MJD in the rule's scale."""
    try:
        moment = MJD_EPOCH + timedelta(days=value) if isinstance(value, int | float) else _parse_iso(value)
    except (ValueError, OverflowError):
        raise InputError(f"got {rule.keyword} {value!r}, wanted a time (ISO text or MJD)") from None
    mjd = float(value) if isinstance(value, int | float) else (moment - MJD_EPOCH) / timedelta(days=1)
    return mjd + (tai_minus_utc_s(moment) / SECONDS_PER_DAY if rule.scale == "utc" else 0.0)


def _parse_iso(text: Any) -> datetime:
    return datetime.fromisoformat(str(text).strip().removesuffix("Z"))
