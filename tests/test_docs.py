"""What the documents say of the code is so."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def list_modules():
    spec = importlib.util.spec_from_file_location("list_modules", ROOT / "docs" / "list_modules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_structures_lists_every_module(list_modules):
    """`python docs/list_modules.py` has nothing left to write."""
    page = (ROOT / "docs" / "structures.md").read_text()
    assert list_modules.written(page) == page, "run: python docs/list_modules.py"


def test_readme_commands_exist():
    """Every `make` target and `nightstream` command that the README names is there."""
    from nightstream.cli import app

    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = {line.split("`make ")[1].split("`")[0] for line in readme.splitlines() if "`make " in line}
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = {line.split("nightstream ")[1].split()[0] for line in readme.splitlines() if line.startswith("nightstream ")}
    assert targets and named
    assert all(f"\n{target}:" in makefile for target in targets)
    assert named <= commands
