"""Header sections such as DATASEC ``[4:512,1:2000]``, checked against the camera's YAML, which counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nightstream.engine.camera import Amplifier, Box

SECTION = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]")


def parse_section(text: str) -> tuple[Box, bool, bool] | None:
    """Return (0-based half-open box, reversed in x, reversed in y) of ``[x1:x2,y1:y2]``, or None."""
    found = SECTION.fullmatch(text.strip())
    if found is None:
        return None
    x1, x2, y1, y2 = map(int, found.groups())
    if min(x1, x2, y1, y2) < 1:
        return None
    return Box(min(x1, x2) - 1, max(x1, x2), min(y1, y2) - 1, max(y1, y2)), x1 > x2, y1 > y2


def section_disagreements(header: Mapping[str, Any], amplifier: Amplifier) -> list[str]:
    """Say where DATASEC, BIASSEC (as boxes) and DETSEC (in size) disagree with ``amplifier``.

    DETSEC's origin and direction are a matter of convention and are not compared.
    """
    problems = []
    for keyword, wanted in (("DATASEC", amplifier.data), ("BIASSEC", amplifier.serial_overscan)):
        section = parse_section(str(header.get(keyword, "")))
        if section is not None and wanted is not None and _moved(section[0], amplifier) != wanted:
            problems.append(f"{amplifier.name} {keyword} got {header[keyword]}, wanted {_text(wanted)}")
    section = parse_section(str(header.get("DETSEC", "")))
    if section is not None and _binned(section[0].shape, header) != amplifier.data.shape:
        problems.append(f"{amplifier.name} DETSEC got {header['DETSEC']}, wanted size {amplifier.data.shape} (y, x)")
    return problems


def _moved(box: Box, amplifier: Amplifier) -> Box | None:
    """``box`` of the HDU within the amplifier's raw box, None if it begins outside."""
    x, y = amplifier.raw.x0, amplifier.raw.y0
    return Box(box.x0 - x, box.x1 - x, box.y0 - y, box.y1 - y) if box.x0 >= x and box.y0 >= y else None


def _binned(shape: tuple[int, int], header: Mapping[str, Any]) -> tuple[int, int]:
    words = str(header.get("CCDSUM", "1 1")).split()
    x, y = (int(word) if word.isdigit() and int(word) else 1 for word in (words + ["1", "1"])[:2])
    return shape[0] // y, shape[1] // x


def _text(box: Box) -> str:
    return f"[{box.x0 + 1}:{box.x1},{box.y0 + 1}:{box.y1}]"
