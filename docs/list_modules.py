"""Write the last section of docs/structures.md: one line per module, the first sentence of its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "engine", "io", "scheduler", "src/nightstream")
HEADING = "## One line per module\n"


def module_list() -> str:
    """Return the section's body as Markdown."""
    lines = []
    for room in ROOMS:
        lines += ["", f"**`{room}/`**", ""]
        folder = ROOT / room
        linked = {p.name for p in folder.iterdir() if p.is_symlink()}
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if path.name != "__init__.py" and inside.parts[0] not in linked:
                lines.append(f"- `{inside}`: {summary(path)}")
    return "\n".join(lines) + "\n"


def summary(path: Path) -> str:
    """Return the first paragraph of a module's docstring on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def written(document: str) -> str:
    """Return ``document`` with the section brought up to date."""
    return document.split(HEADING)[0] + HEADING + module_list()


if __name__ == "__main__":
    page = ROOT / "docs" / "structures.md"
    page.write_text(written(page.read_text()))
