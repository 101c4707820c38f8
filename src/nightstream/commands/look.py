"""``nightstream export`` and ``nightstream show``: look at a product with other tools, or at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from nightstream.commands.common import console, errors_end_the_command


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
        if content == "visit":
            print_status(product)
            return
        from nightstream.report.quicklook import save_quicklook

        save_quicklook(product, picture)
        console.print(f"wrote {picture}", markup=False)


def print_header(product: Path) -> str:
    """Print every attribute of the file and its groups, and the shape of every dataset; return what the file holds."""
    with _opened(product) as file:
        console.print(_attribute_table(product.name, file.attrs))
        file.visititems(_print_item)
        return str(file.attrs.get("content", ""))


def print_status(master: Path) -> None:
    """Print how each detector of a visit ended."""
    from nightstream.io.products import read_visit_status

    rows = read_visit_status(master)
    table = Table(*(rows[0] if rows else ()), title="detectors", title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
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


def _print_item(name: str, item) -> None:
    if hasattr(item, "shape"):
        columns = f" {len(item.dtype.names)} columns" if item.dtype.names else f" {item.dtype}"
        console.print(f"{name}: {' x '.join(map(str, item.shape)) or 'scalar'}{columns}", markup=False)
    elif item.attrs:
        console.print(_attribute_table(name, item.attrs))


def _attribute_table(title: str, attributes) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in attributes.items():
        text = str(value)
        table.add_row(key, text if len(text) <= 200 else f"{text[:200]} ...")
    return table
