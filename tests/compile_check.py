"""Compiles CUDA sources for several architectures without a GPU, and reads what each kernel needs.

``python tests/compile_check.py`` prints the table; with ``--update`` it rewrites ``register_budget.json``.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from nightstream.kernels.target import NVRTC_OPTIONS

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "kernels" / "cuda"
BUDGET = Path(__file__).with_name("register_budget.json")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
UNBUDGETED_REGISTERS = 128  # a kernel not yet in the budget may use this many: 512 threads still fit an SM
GROWTH = 8  # registers a kernel may grow over its budget: the granularity of their allocation

REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.S,
)


class Resources(NamedTuple):
    """What one kernel needs on one architecture."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_source(path: Path, arch: str) -> dict[str, Resources]:
    """Compile the text of ``path`` alone for ``arch``, as on the card; return the needs of each kernel by name."""
    from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    assert NVRTC_OPTIONS == ("--std=c++17", "--fmad=false"), "keep the options below the same"
    options = ProgramOptions(name=str(path), arch=arch, std="c++17", fma=False, ptxas_options=["-v"])
    Program(path.read_text(), "c++", options).compile("cubin", logs=log)
    found = REPORT.findall(log.getvalue())
    return {n: Resources(int(r), int(s or 0), int(a) + int(b)) for n, a, b, r, s in found}


def budget_key(path: Path, kernel: str, arch: str) -> str:
    return f"{path.stem}.{kernel}.{arch}"


def read_budget() -> dict[str, int]:
    """Registers a kernel needed when the budget was last written, by `budget_key`."""
    return json.loads(BUDGET.read_text()) if BUDGET.exists() else {}


def problems(path: Path, arch: str, needs: dict[str, Resources], budget: dict[str, int]) -> list[str]:
    """Say which kernels spill registers or have grown over their budget."""
    found = []
    for kernel, need in needs.items():
        key = budget_key(path, kernel, arch)
        allowed = budget[key] + GROWTH if key in budget else UNBUDGETED_REGISTERS
        if need.spilled_bytes:
            found.append(f"{key} spills {need.spilled_bytes} bytes")
        if need.registers > allowed:
            found.append(f"{key} uses {need.registers} registers, allowed {allowed}")
    return found


def main() -> None:
    """Print the needs of every kernel; ``--update`` makes them the budget."""
    table = {}
    for path in sorted(CUDA.glob("*.cu")):
        for arch in ARCHITECTURES:
            for kernel, need in compile_source(path, arch).items():
                table[budget_key(path, kernel, arch)] = need
    for key, need in table.items():
        print(f"{key:50s} {need.registers:4d} registers {need.shared_bytes:6d} B shared", end=" ")
        print(f"{need.spilled_bytes} B spilled")
    if "--update" in sys.argv[1:]:
        registers = {key: need.registers for key, need in table.items()}
        BUDGET.write_text(json.dumps(registers, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
