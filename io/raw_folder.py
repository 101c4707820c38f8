"""Raw files to visits: headers say what each file is; names and folders mean nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightstream.engine.values import ExposureInfo
from nightstream.errors import FileError, NightstreamError
from nightstream.io.cameras import RawCamera
from nightstream.io.raw import read_info

SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.fz", ".fz")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFolder:
    """What was found: the readable exposures, and the files that are none, with the reason."""

    exposures: tuple[ExposureInfo, ...]  # by time, then detector
    problems: tuple[NightstreamError, ...]

    def select(
        self, kind: str, *, detectors: Sequence[int] = (), bands: Sequence[str] = (), visits: Sequence[int] = ()
    ) -> list[ExposureInfo]:
        """Return the exposures of one kind; an empty selection of detectors, bands or visits means all."""
        chosen = ((detectors, "detector"), (bands, "band"), (visits, "visit"))
        return [
            info
            for info in self.exposures
            if info.kind == kind and all(not wanted or getattr(info, name) in wanted for wanted, name in chosen)
        ]


def find_raw_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the FITS files among ``paths`` and below the folders among them, sorted.

    A path that is no folder is kept whatever its name; reading it will tell if it is missing.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            found.update(p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file())
        else:
            found.add(path)
    return sorted(found)


def read_raw_folder(
    paths: Iterable[str | Path], camera: RawCamera, read: Callable[[Path, RawCamera], ExposureInfo] = read_info
) -> RawFolder:
    """Read the headers of all raw files under ``paths``. A file that cannot be read is a problem, not an error."""
    exposures, problems = [], []
    for path in find_raw_files(paths):
        try:
            exposures.append(read(path, camera))
        except NightstreamError as error:
            problems.append(error)
    exposures.sort(key=lambda info: (info.midpoint_mjd_tai, info.visit, info.detector))
    return RawFolder(exposures=tuple(exposures), problems=tuple(problems))


def group_visits(exposures: Iterable[ExposureInfo]) -> tuple[dict[int, dict[int, str]], list[FileError]]:
    """Return ``visit: {detector: path}``, in the order given, and an error for each second file of one detector."""
    visits: dict[int, dict[int, str]] = defaultdict(dict)
    doubles = []
    for info in exposures:
        first = visits[info.visit].setdefault(info.detector, info.path)
        if first != info.path:
            where = {"visit": info.visit, "detector": info.detector, "path": info.path}
            doubles.append(FileError(f"a second raw file of one exposure, the first is {first}", **where))
    return dict(visits), doubles
