"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nightstream.errors import FileError, NightstreamError


@contextmanager
def complete_or_absent(path: str | Path, *, visit: int | None = None, detector: int | None = None) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; when the block ends well, it becomes ``path``, durably.

    The folder is made if need be. The bytes reach the disk before the name does, and the name before this returns, so
    that a reader, or a machine after a power cut, sees the old file, the new one or none. Whatever goes wrong, the
    temporary file is removed; one left by a killed process of this machine goes when the next one writes. An OSError
    (a full disk) becomes a FileError; any `NightstreamError` gets to know ``path``, ``visit`` and ``detector``.
    """
    path = Path(path)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}.{threading.get_ident()}.tmp")
    where = {"visit": visit, "detector": detector, "path": str(path)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except NightstreamError as error:
        raise error.locate(**where) from None
    except OSError as error:
        raise FileError(f"could not write the file: {error.strerror or error}", **where) from error
    finally:
        with suppress(OSError):  # it was never made, or is the product by now
            temporary.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name}.{platform.node()}."


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that are no more left behind while writing ``path``."""
    for name in os.listdir(path.parent):
        if name.startswith(_prefix(path)) and name.endswith(".tmp"):
            process = name.removeprefix(_prefix(path)).partition(".")[0]
            if process.isdigit() and not _is_alive(int(process)):
                (path.parent / name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
