"""Every CUDA source compiles for the cards we support, within its registers, and has its Numba twin."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import compile_check
import pytest
from cudashim import loader

import nightstream.kernels
from nightstream.kernels.target import HotLoop

SOURCES = sorted(compile_check.CUDA.glob("*.cu"))


def hot_loops() -> dict[tuple[str, str], HotLoop]:
    """All hot loops of `nightstream.kernels` by (source, name)."""
    found = {}
    for module in pkgutil.iter_modules(nightstream.kernels.__path__):
        members = vars(importlib.import_module(f"nightstream.kernels.{module.name}")).values()
        found |= {(m.source, m.name): m for m in members if isinstance(m, HotLoop)}
    return found


@pytest.mark.parametrize("arch", compile_check.ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_source_compiles_without_spills_or_growth(path, arch):
    """NVRTC builds the source for the architecture; no register spills and none grows over its budget."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed", exc_type=ImportError)
    needs = compile_check.compile_source(path, arch)
    assert needs.keys() == loader.signatures(path.read_text()).keys()
    assert not compile_check.problems(path, arch, needs, compile_check.read_budget())


def test_spills_and_growth_are_problems():
    """The gate itself: a spill, a kernel over its budget and a greedy new kernel are each reported."""
    path, needs = compile_check.CUDA / "x.cu", compile_check.Resources
    budget = {"x.known.sm_80": 32}
    assert compile_check.problems(path, "sm_80", {"known": needs(40, 0, 0)}, budget) == []
    assert "spills 4" in compile_check.problems(path, "sm_80", {"known": needs(32, 0, 4)}, budget)[0]
    assert "uses 41" in compile_check.problems(path, "sm_80", {"known": needs(41, 0, 0)}, budget)[0]
    assert "uses 129" in compile_check.problems(path, "sm_80", {"new": needs(129, 0, 0)}, budget)[0]


def test_every_hot_loop_has_its_kernel_and_every_kernel_its_hot_loop():
    """Names pair up one to one between the Numba functions and the `.cu` sources."""
    kernels = {(path.stem, name) for path in SOURCES for name in loader.signatures(path.read_text())}
    assert hot_loops().keys() == kernels


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_twins_take_the_same_arguments(path):
    """A hot loop and its kernel have the same number of parameters."""
    loops = hot_loops()
    for name, kernel in loader.signatures(path.read_text()).items():
        numba_parameters = inspect.signature(loops[path.stem, name]).parameters
        assert len(numba_parameters) == len(kernel.parameters), name
