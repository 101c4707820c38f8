"""Where the real frames lie; tests that need them skip, and say why, when they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("NIGHTSTREAM_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_data(name: str) -> Path:
    """Return the folder of the data set ``name``, or skip the test."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"real frames {name!r} not found under {ROOT} (set NIGHTSTREAM_DATA)")
    return folder
