"""What the commands share: the console, the configuration file, and how errors end a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from nightstream.errors import ConfigError, NightstreamError

if TYPE_CHECKING:
    from nightstream.engine.config import EngineConfig
    from nightstream.engine.values import ExposureInfo
    from nightstream.io.cameras import RawCamera
    from nightstream.scheduler.alerts_config import AlertsConfig
    from nightstream.scheduler.config import SchedulerConfig

console = Console(soft_wrap=True, highlight=False)
error_console = Console(stderr=True, soft_wrap=True, highlight=False)

FAILURE, USAGE, INTERRUPTED = 1, 2, 130  # exit status
# module: what installs it
EXTRA_OF = {"matplotlib": "plot", "cupy": "cuda13-wheels", "confluent_kafka": "kafka", "psycopg": "postgres"}
SECTIONS = ("engine", "scheduler", "alerts")  # of the configuration file
SECRETS = {"kafka", "database"}  # settings that may hold passwords: their values are never shown
SHOWN = 8  # values of a list in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of a command: file and options together."""

    engine: Mapping[str, Mapping[str, Any]]  # what the file sets, to be laid over what the camera needs
    config: EngineConfig  # the two, over the defaults
    scheduler: SchedulerConfig
    alerts: AlertsConfig


@contextmanager
def errors_end_the_command() -> Iterator[None]:
    """Print an expected error in one line and exit: 2 for a wrong configuration, 1 for a failure, 130 for Ctrl-C."""
    try:
        yield
    except NightstreamError as error:
        stop(str(error), USAGE if isinstance(error, ConfigError) else FAILURE)
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED)
    except ImportError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        stop(f"{error}; pip install 'nightstream[{extra}]'" if extra else f"broken installation: {error}", FAILURE)


def stop(message: str, status: int) -> None:
    """Print one error and exit."""
    error_console.print(f"error: {message}", style="red", markup=False)
    raise typer.Exit(status)


def warn(message: str) -> None:
    """Print one warning."""
    error_console.print(f"warning: {message}", style="yellow", markup=False)


def load_settings(
    path: Path | None,
    camera: RawCamera,
    scheduler: Mapping[str, Any] | None = None,
    alerts: Mapping[str, Any] | None = None,
) -> Settings:
    """Read a configuration file; options in ``scheduler`` and ``alerts`` that are not None win over it.

    The file is YAML with the sections ``engine``, ``scheduler`` and ``alerts``. Raises ConfigError naming file and key.
    """
    from nightstream.io.cameras import engine_config
    from nightstream.scheduler.alerts_config import AlertsConfig
    from nightstream.scheduler.config import SchedulerConfig

    written = _sections(path)
    try:
        config = engine_config(camera, written["engine"])
    except ConfigError as error:
        raise error.locate(path=str(path)) from None
    return Settings(
        engine=written["engine"],
        config=config,
        scheduler=_validated(SchedulerConfig, "scheduler", written["scheduler"] | _given(scheduler), path),
        alerts=_validated(AlertsConfig, "alerts", written["alerts"] | _given(alerts), path),
    )


def _given(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (options or {}).items() if value is not None}


def _sections(path: Path | None) -> dict[str, dict]:
    """The sections of a configuration file; empty where there is none."""
    tree = read_yaml(path) if path is not None else {}
    unknown = sorted(set(map(str, tree)) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"unknown section {', '.join(unknown)}; there are {', '.join(SECTIONS)}", path=str(path))
    sections = {name: tree.get(name) or {} for name in SECTIONS}
    for name, section in (*sections.items(), *_engine_items(sections["engine"])):
        if not isinstance(section, dict):
            raise ConfigError(f"{name} must hold settings, got {section!r}", path=str(path))
    return sections


def _engine_items(engine: Any) -> list[tuple[str, Any]]:
    """The engine's sections with their full names."""
    return [(f"engine.{name}", section) for name, section in engine.items()] if isinstance(engine, dict) else []


def find_camera(name: str) -> RawCamera:
    """Load a camera; a name that is none is a usage error."""
    from nightstream.io.cameras import load_camera

    try:
        return load_camera(name)
    except NightstreamError as error:
        raise ConfigError(error.message, path=error.path) from None


def nothing_chosen(kind: str, camera: RawCamera, raws: Iterable[Path], present: Iterable[ExposureInfo]) -> ConfigError:
    """The usage error of a command that finds nothing to do; what else of this kind is there may show why."""
    message, present = f"no {kind} of {camera.name} in {', '.join(map(str, raws))}", list(present)
    if present:
        there = {name: sorted({getattr(info, name) for info in present}) for name in ("detector", "band", "visit")}
        listed = "; ".join(f"{name} {_shortened(values)}" for name, values in there.items())
        message += f" as asked for; there are {listed}"
    return ConfigError(message)


def _shortened(values: list) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def choose_detectors(camera: RawCamera, wanted: list[int]) -> list[int]:
    """Return ``wanted``, or all detectors of the camera; a number that it lacks is a usage error."""
    unknown = sorted(set(wanted) - set(camera.detectors))
    if unknown:
        raise ConfigError(f"camera {camera.name} has no detector {', '.join(map(str, unknown))}")
    return sorted(set(wanted)) or sorted(camera.detectors)


def read_yaml(path: Path) -> dict:
    """Return the settings in a YAML file. Raises ConfigError when it cannot be read or holds none."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", path=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", path=str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"wanted sections with settings, got {type(tree).__name__}", path=str(path))
    return tree


def _validated(model: type, section: str, values: Any, path: Path | None) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(section, entry) for entry in error.errors())
        raise ConfigError(problems, path=str(path) if path else None) from None


def _problem(section: str, entry: Mapping[str, Any]) -> str:
    name = ".".join([section, *map(str, entry["loc"])])
    if entry["type"] == "extra_forbidden":
        return f"{name}: unknown setting"
    got = "" if SECRETS.intersection(entry["loc"]) else f", got {entry['input']!r}"
    return f"{name}: {entry['msg'].lower()}{got}"


class Failures(list):
    """Error messages of the parts of a command that failed while the others went on."""

    def stop_if_any(self) -> None:
        """Print all and exit with 1, if there are any."""
        for message in self:
            error_console.print(f"error: {message}", style="red", markup=False)
        if self:
            raise typer.Exit(FAILURE)


def each_detector(tasks: Iterable[Any], work: Callable[[Any], None], advance: Callable[[], None]) -> Failures:
    """Do ``work`` for each task; one that fails does not stop the next. Return what failed."""
    failures = Failures()
    for task in tasks:
        try:
            work(task)
        except NightstreamError as error:
            detector = task[0] if isinstance(task, tuple) else task
            failures.append(str(error.locate(detector=detector)))
        advance()
    return failures


@contextmanager
def detector_progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields the function that moves it on, by one unless told."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps=1: progress.advance(task, steps)
