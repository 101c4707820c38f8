"""Users' and site filters: which alerts of a visit each user gets, at most 20 a user.

A user's filter is a file of SQL, ``<filters>/<user>.sql`` or several as ``<filters>/<user>/*.sql``; `io.alerts.filter_guard`
says what it may hold, `io.alerts.filter_sandbox` runs it. A site's filter is trusted Python: an entry point of the group
`nightstream.filters` that gets the tables and returns a mask of the sources. One filter's error is its own.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nightstream.engine.memory import to_host
from nightstream.engine.tables import n_rows
from nightstream.engine.values import Array, Table
from nightstream.errors import FileError, InputError, NightstreamError
from nightstream.io.alerts.filter_guard import MAX_CHARACTERS, GuardedSql, guard
from nightstream.io.alerts.filter_sandbox import Sandbox, TimeOut

ENTRY_POINTS = "nightstream.filters"
SITE = "site-"  # before the name of an entry point, where users' names stand
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class FilterConfig(BaseModel):
    """What a user's filters may take. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_alerts: int = Field(default=20, ge=1)  # alerts a user gets of one visit
    first_seconds: float = Field(default=0.1, gt=0)  # s; every filter has so long before the slow ones are tried again
    seconds_per_filter: float = Field(default=1.0, gt=0)  # s; a slow filter is stopped then
    seconds_per_visit: float = Field(default=5.0, ge=0)  # s; all slow filters together have so long
    memory_mib: int = Field(default=512, ge=64)  # MiB; the visit's tables and what a filter makes of them


@dataclass(frozen=True, slots=True)
class Filter:
    """A user's filter that passed the guard."""

    user: str
    path: str
    select: GuardedSql


@dataclass(frozen=True, slots=True)
class SiteFilter:
    """A trusted function: tables (dia_sources, dia_objects, ss_sources) -> bool mask of the rows of dia_sources."""

    user: str
    path: str
    function: Callable[[Mapping[str, Table]], Array]


@dataclass(frozen=True, slots=True)
class RefusedFilter:
    """A filter that does not run, and why; ``reason`` names user and file."""

    user: str
    path: str
    reason: str


AnyFilter = Filter | SiteFilter | RefusedFilter


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What a user gets of a visit: diaSourceIds, best first; what went wrong, or None; seconds the filters took."""

    ids: np.ndarray
    error: str | None
    seconds: float


def load_filters(folder: str | Path) -> list[Filter | RefusedFilter]:
    """Return every filter in ``folder``, by user and file name; those that cannot run as RefusedFilter.

    Each is checked against the guard and against the columns there are. Raises FileError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError("no such folder of filters", path=str(folder))
    read = [_read(user, path, str(path.relative_to(folder))) for user, path in _files(folder)]
    sandbox = Sandbox({}, FilterConfig().memory_mib, _names(read))
    try:
        return [_tried(one, sandbox) if isinstance(one, Filter) else one for one in read]
    finally:
        sandbox.close()


def load_site_filters() -> list[SiteFilter | RefusedFilter]:
    """Return the installed entry points of the group `nightstream.filters`; those that fail to load as RefusedFilter."""
    from importlib.metadata import entry_points

    return [_loaded_site(entry) for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)]


def run_filters(
    filters: Sequence[AnyFilter], tables: Mapping[str, Table], config: FilterConfig | None = None
) -> dict[str, FilterResult]:
    """Return what each user gets of the visit whose alerts are ``tables``: dia_sources, dia_objects, ss_sources.

    A user gets at most ``config.max_alerts`` alerts, in the order of the filter's ORDER BY, else by reliability, then
    by absolute S/N; of several files of one user the best of each come first. Site filters have no such limit, nor one of
    time. A refused, wrong, slow or hungry filter gives its user an error and does nothing to the others.
    """
    config = config or FilterConfig()
    best_first = _best_first(tables["dia_sources"])
    outcomes = _run_sql([one for one in filters if isinstance(one, Filter)], tables, best_first, config)
    for one in filters:
        if isinstance(one, SiteFilter):
            outcomes[one] = _run_site(one, tables, best_first)
        elif isinstance(one, RefusedFilter):
            outcomes[one] = FilterResult(_NOTHING, one.reason, 0.0)
    users = {user: [one for one in filters if one.user == user] for user in sorted({one.user for one in filters})}
    return {user: _merged(own, outcomes, config) for user, own in users.items()}


_NOTHING = np.empty(0, np.int64)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from ((path.name, file) for file in sorted(path.glob("*.sql")) if not file.name.startswith("."))
        elif path.suffix == ".sql":
            yield path.stem, path


def _read(user: str, path: Path, name: str) -> Filter | RefusedFilter:
    """The filter, if its user's name and its text pass."""
    try:
        if not _USER.fullmatch(user) or user.startswith(SITE):
            raise InputError(f"a user's name has letters, digits, and _ . - after the first, and does not begin with {SITE}")
        return Filter(user, name, guard(_text(path)))
    except NightstreamError as error:
        return RefusedFilter(user, name, _named(user, name, error.message))


def _tried(one: Filter, sandbox: Sandbox) -> Filter | RefusedFilter:
    """Run once on no rows, which finds columns that do not exist."""
    try:
        sandbox.choose(one.select, FilterConfig().seconds_per_filter)
        return one
    except NightstreamError as error:
        return RefusedFilter(one.user, one.path, _named(one.user, one.path, error.message))


def _names(filters: Iterable[AnyFilter]) -> frozenset[str]:
    """All names in the filters' SQL: no other column can matter to them."""
    return frozenset().union(*(one.select.names for one in filters if isinstance(one, Filter)))


def _text(path: Path) -> str:
    """The text of a plain file, not too long: no link to somebody else's, no pipe that never ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError("is not a plain file")
            content = file.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {'is a link' if path.is_symlink() else error.strerror}") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text, or too long") from None


def _loaded_site(entry) -> SiteFilter | RefusedFilter:
    user = SITE + entry.name
    try:
        return SiteFilter(user, entry.value, entry.load())
    except Exception as error:  # whatever the import of foreign code raises is that filter's error alone
        return RefusedFilter(user, entry.value, _named(user, entry.value, f"cannot be loaded: {error!r}"))


def _best_first(sources: Table) -> np.ndarray:
    """diaSourceIds by reliability, then |S/N|, both falling; unknown values last."""
    ids = to_host(sources["dia_source_id"]).astype(np.int64)
    keys = [np.abs(_floats(sources, "snr", len(ids))), _floats(sources, "reliability", len(ids))]
    return ids[np.lexsort([np.where(np.isnan(key), np.inf, -key) for key in keys])]


def _floats(table: Table, name: str, length: int) -> np.ndarray:
    if name not in table:
        return np.full(length, np.nan)
    values = table[name]
    return np.ma.filled(values.astype(float), np.nan) if np.ma.isMaskedArray(values) else to_host(values).astype(float)


def _run_sql(
    filters: Sequence[Filter], tables: Mapping[str, Table], best_first: np.ndarray, config: FilterConfig
) -> dict[AnyFilter, FilterResult]:
    """Outcome of each filter. All get a short try first, so that slow ones cost the others nothing."""
    if not filters:
        return {}
    sandbox = Sandbox(tables, config.memory_mib, _names(filters))
    try:
        first = {one: _try(one, sandbox, best_first, config.first_seconds, config.max_alerts) for one in filters}
        outcomes: dict[AnyFilter, FilterResult] = {one: result for one, result in first.items() if result is not None}
        left = config.seconds_per_visit
        for one in (one for one in filters if one not in outcomes):
            outcomes[one], left = _try_again(one, sandbox, best_first, config, left)
        return outcomes
    finally:
        sandbox.close()


def _try(one: Filter, sandbox: Sandbox, best_first: np.ndarray, seconds: float, max_alerts: int) -> FilterResult | None:
    """The outcome, or None if there was not enough time."""
    start = time.perf_counter()
    try:
        chosen = sandbox.choose(one.select, seconds)
        ids, error = _ordered(chosen, best_first, one.select.is_ordered)[:max_alerts], None
    except TimeOut:
        return None
    except NightstreamError as failure:
        ids, error = _NOTHING, _named(one.user, one.path, failure.message)
    return FilterResult(ids, error, time.perf_counter() - start)


def _try_again(
    one: Filter, sandbox: Sandbox, best_first: np.ndarray, config: FilterConfig, left: float
) -> tuple[FilterResult, float]:
    """The outcome with the longer time, and the seconds that slow filters still have in this visit."""
    seconds, start = min(config.seconds_per_filter, left), time.perf_counter()
    result = _try(one, sandbox, best_first, seconds, config.max_alerts) if seconds > 0 else None
    took = time.perf_counter() - start
    if result is None:
        reason = f"took longer than {config.seconds_per_filter:g} s and was stopped"
        if seconds < config.seconds_per_filter:
            reason = f"took longer than {max(seconds, config.first_seconds):.3g} s and was stopped; "
            reason += f"slow filters had used the {config.seconds_per_visit:g} s they share in a visit"
        result = FilterResult(_NOTHING, _named(one.user, one.path, reason), took)
    return result, left - took


def _run_site(one: SiteFilter, tables: Mapping[str, Table], best_first: np.ndarray) -> FilterResult:
    start = time.perf_counter()
    ids, error = _NOTHING, None
    try:
        mask = to_host(one.function(tables))
        if mask.dtype != bool or mask.shape != (n_rows(tables["dia_sources"]),):
            raise InputError(f"must return one bool a source, got {mask.dtype} of shape {mask.shape}")
        ids = _ordered(to_host(tables["dia_sources"]["dia_source_id"])[mask], best_first, is_ordered=False)
    except Exception as failure:  # trusted, but its errors are its own
        reason = failure.message if isinstance(failure, NightstreamError) else repr(failure)
        error = _named(one.user, one.path, reason)
    return FilterResult(ids, error, time.perf_counter() - start)


def _ordered(ids: np.ndarray, best_first: np.ndarray, is_ordered: bool) -> np.ndarray:
    """Each id of this visit once: in its order, or the best first."""
    if not is_ordered:
        return best_first[np.isin(best_first, ids)]
    _, first = np.unique(ids, return_index=True)
    ids = ids[np.sort(first)]
    return ids[np.isin(ids, best_first)]


def _merged(own: Iterable[AnyFilter], outcomes: Mapping[AnyFilter, FilterResult], config: FilterConfig) -> FilterResult:
    """One user's filters together: the first of each, the second of each, and so on, every alert once."""
    results = [outcomes[one] for one in own]
    turns = zip_longest(*(result.ids.tolist() for result in results))
    ids = list(dict.fromkeys(number for turn in turns for number in turn if number is not None))
    limit = None if any(isinstance(one, SiteFilter) for one in own) else config.max_alerts
    errors = [result.error for result in results if result.error]
    return FilterResult(np.array(ids[:limit], np.int64), "; ".join(errors) or None, sum(result.seconds for result in results))


def _named(user: str, path: str, reason: str) -> str:
    return f"filter of {user}, file {path}: {reason}"
