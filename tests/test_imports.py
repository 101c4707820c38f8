"""The arrows of the house point down: front door -> scheduler -> io -> engine -> kernels."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lowest first: a room may import itself, the rooms below it, and the one leaf, `nightstream.errors`.
ROOMS = ("kernels", "engine", "io", "scheduler", "front")
FOLDERS = {**{room: ROOT / room for room in ROOMS[:-1]}, "front": ROOT / "src" / "nightstream"}
LAZY_ONLY = {"cupy", "cupyx", "ray", "matplotlib", "astropy.wcs"}
KERNEL_LIBRARIES = {"numpy", "scipy", "numba", "nightstream"}


def sources(room: str) -> list[Path]:
    """The Python files of a room; the links in the front door's folder are not its own."""
    found = sorted(FOLDERS[room].rglob("*.py"))
    links = [FOLDERS["front"] / other for other in ROOMS[:-1]]
    return [p for p in found if room != "front" or not any(link in p.parents for link in links)]


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that ``tree`` imports, with the names taken out of a module as ``module.name``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write `from nightstream...`"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_module_level(tree: ast.Module) -> ast.Module:
    """``tree`` without its functions and without what only type checkers read."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        def visit_If(self, node):
            return None if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else node

    return Strip().visit(tree)


def room_of(name: str) -> str | None:
    """The room that owns the dotted name, or None if it is not of the project or is the leaf."""
    if not name.startswith("nightstream") or name.startswith("nightstream.errors"):
        return None
    part = name.split(".")[1] if "." in name else ""
    return part if part in ROOMS[:-1] else "front"


def is_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down(room):
    """No room imports one above it, at module level or later."""
    allowed = {*ROOMS[: ROOMS.index(room) + 1], None}
    for path in sources(room):
        up = {name for name in imports(ast.parse(path.read_text())) if room_of(name) not in allowed}
        up -= {"nightstream.__version__"}  # a constant of the light front door, for provenance
        assert not up, f"{path}: a {room} file imports {sorted(up)}"


@pytest.mark.parametrize("room", ["kernels", "engine"])
def test_heavy_libraries_are_imported_lazily(room):
    """CuPy, Ray, matplotlib and astropy.wcs are never paid for by importing kernels or engine."""
    for path in sources(room):
        heavy = {n for n in imports(at_module_level(ast.parse(path.read_text()))) if is_in(n, LAZY_ONLY)}
        assert not heavy, f"{path} imports {sorted(heavy)} at module level"


def test_kernels_know_arrays_only():
    """Kernels import NumPy, SciPy, Numba, CuPy (lazily) and the standard library."""
    allowed = KERNEL_LIBRARIES | sys.stdlib_module_names | {"cupy", "cupyx"}
    for path in sources("kernels"):
        foreign = {n for n in imports(ast.parse(path.read_text())) if n.split(".")[0] not in allowed}
        assert not foreign, f"{path} imports {sorted(foreign)}"


def loaded_by(statement: str) -> set[str]:
    """Names in ``sys.modules`` of a new interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_front_door_is_light():
    """``import nightstream`` loads no numerical library, so ``--help`` answers at once."""
    heavy = {"numpy", "scipy", "numba", "astropy", "h5py", "ray", "cupy", "matplotlib", "pydantic"}
    assert not loaded_by("import nightstream") & heavy


def test_rooms_have_one_name():
    """Rooms are loaded as ``nightstream.<room>`` only, never twice under their bare names."""
    rooms = "import nightstream.kernels, nightstream.engine, nightstream.io, nightstream.scheduler"
    loaded = loaded_by(rooms + ", nightstream.engine.values, nightstream.kernels.target")
    assert not loaded & {"kernels", "engine", "scheduler"}
    assert "nightstream.kernels.target" in loaded
