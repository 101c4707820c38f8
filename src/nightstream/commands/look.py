"""``nightstream export`` and ``nightstream show``: look at a product with other tools, or at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from nightstream.commands.common import console, errors_end_the_command

if TYPE_CHECKING:
    import h5py

LONGEST_TEXT = 200
VISIT, EXPOSURE = "visit", "visit_image"  # as `nightstream.io.products` calls them


def export_command(product: Path, output: Path) -> None:
    """Write an HDF5 product as FITS."""
    from nightstream.io.export import export_fits

    with errors_end_the_command():
        export_fits(product, output)
        console.print(f"wrote {output}", markup=False)


def show_command(product: Path, picture: Path | None, *, header: bool) -> None:
    """Draw a product; print its attributes and groups of attributes first. Of a visit, print how its detectors ended."""
    picture = picture or product.with_suffix(".png")
    with errors_end_the_command():
        content = print_header(product) if header else _content(product)
        if content == VISIT:
            print_status(product)
            return
        from nightstream.report.quicklook import save_quicklook

        save_quicklook(product, picture)
        console.print(f"wrote {picture}", markup=False)


def print_header(product: Path) -> str:
    """Print what the file is, what it holds and the facts that go with it; return its content. A visit's links stay shut."""
    with _opened(product) as file:
        content = str(file.attrs.get("content", ""))
        console.print(_facts_table(str(product), file.attrs))
        for name, item in file.items() if content != VISIT else ():
            _print_item(name, item)
        return content


def print_status(master: Path) -> None:
    """Print how each detector of a visit ended."""
    from nightstream.io.products import read_visit_status

    rows = read_visit_status(master)
    table = Table(title="detectors", title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_readable(value)) for value in row.values()))
    console.print(table)


def _content(product: Path) -> str:
    with _opened(product) as file:
        return str(file.attrs.get("content", ""))


@contextmanager
def _opened(product: Path) -> Iterator:
    import h5py

    from nightstream.errors import FileError

    try:
        file = h5py.File(product, "r")
    except OSError as error:
        raise FileError(f"not a readable HDF5 file: {error}", path=str(product)) from None
    with file:
        yield file


def _print_item(name: str, item: h5py.Group | h5py.Dataset) -> None:
    """A line for planes and tables, a table for plain facts: a group's attributes, or who took an exposure and when."""
    if hasattr(item, "shape"):
        console.print(f"{name}: {_size(item)}", markup=False)
    elif "image" in item:
        console.print(f"{name}: {_size(item['image'])}; {', '.join(item)}", markup=False)
        if name == EXPOSURE:
            texts = {key: text.asstr()[()] for key, text in item["info"].items()}
            console.print(_facts_table(f"{name}/info", texts | dict(item["info"].attrs)))
    elif item.attrs:
        console.print(_facts_table(name, item.attrs))


def _size(dataset: h5py.Dataset) -> str:
    if dataset.dtype.names:
        return f"{dataset.shape[0]} rows of {len(dataset.dtype.names)} columns"
    unit = dataset.attrs.get("unit")
    return f"{' x '.join(map(str, dataset.shape))} {dataset.dtype}" + (f" ({unit})" if unit else "")


def _facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(Text(key), Text(_readable(value)))
    return table


def _readable(value: Any) -> str:
    """A number to the digits that matter, a time among them; text cut where it would fill the screen."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if abs(value) < 1e4 else f"{value:.11g}"
    text = str(value)
    if "\n" in text:
        return f"{len(text.splitlines())} cards; export writes them"
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ... ({len(text)} characters)"
