"""HDF5 files written complete or not at all, and the plain things in them: pixel planes, text, records.

Knows HDF5 and NumPy only; what the groups mean is decided in `hdf5_values.py` and the modules above it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nightstream.engine.memory import to_host
from nightstream.errors import FileError, InputError, NightstreamError
from nightstream.io.atomic import complete_or_absent

LIBVER = ("v110", "v110")  # HDF5 1.10 and everything later can read it
CHUNK_PIX = 256
COMPRESSION_LEVEL = 1  # of deflate; higher levels cost much time for little space on noise
THREADS = 2  # chunks compressed at once
IMAGE_STEP_BYTES = 1 << 22  # the file grows in memory by this much at a time


@contextmanager
def create_file(path: str | Path, **where) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that is complete under ``path`` when the block ends well, and absent otherwise.

    It is built in memory and written in one go: HDF5 itself, when the disk is full, leaves open handles and a
    broken file behind. ``where`` may hold visit and detector, for the message of a FileError.
    """
    with complete_or_absent(path, **where) as temporary:
        options = {"driver": "core", "backing_store": False, "block_size": IMAGE_STEP_BYTES, "libver": LIBVER}
        with h5py.File(temporary, "w", **options) as file:
            yield file
            file.flush()
            content = file.id.get_file_image()
        temporary.write_bytes(content)


@contextmanager
def open_file(path: str | Path, *contents: str) -> Iterator[h5py.File]:
    """Yield an HDF5 file opened for reading.

    Raises FileError when it is missing, no HDF5 or truncated, InputError when it holds none of ``contents``.
    """
    wanted = " or ".join(contents)
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("content", "something unknown")
            if found not in contents:
                raise InputError(f"the file holds {found}, wanted {wanted}")
            yield file
    except NightstreamError as error:
        raise error.locate(path=str(path)) from None
    except FileNotFoundError:
        raise FileError("the file does not exist", path=str(path)) from None
    except (OSError, KeyError, RuntimeError) as error:
        raise FileError(f"could not read {wanted}: {error}", path=str(path)) from error


def write_plane(group: h5py.Group, name: str, plane, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a (ny, nx) array, compressed (shuffle, deflate) in chunks of 256 x 256 (flat ones in 65536), without loss.

    The ISA-L library compresses several times faster than HDF5 itself and is used where it is installed; the file is
    an ordinary one either way.
    """
    plane = np.ascontiguousarray(to_host(plane))
    dataset = _empty_plane(group, name, plane)
    compress = _fast_deflate()
    if plane.size and compress is not None:
        _write_chunks(dataset, plane, compress)
    elif plane.size:
        dataset[...] = plane
    dataset.attrs.update(attributes or {})


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Write text of any length as a scalar UTF-8 dataset."""
    group.create_dataset(name, data=text, dtype=h5py.string_dtype())


def read_text(group: h5py.Group, name: str) -> str:
    """Return what `write_text` wrote."""
    return group[name].asstr()[()]


def write_record(parent: h5py.Group, name: str, record: Any) -> None:
    """Write a dataclass of arrays, numbers and strings: arrays and strings as datasets, numbers as attributes.

    A field that is None is left out, and `read_record` leaves it at its default.
    """
    group = parent.create_group(name)
    group.attrs["type"] = type(record).__name__
    for field in _record_fields(type(record)):
        value = getattr(record, field.name)
        if isinstance(value, str):
            write_text(group, field.name, value)
        elif isinstance(value, (bool, int, float, np.generic)):
            group.attrs[field.name] = value
        elif value is not None:
            group.create_dataset(field.name, data=to_host(value))


def read_record(parent: h5py.Group, name: str, kind: type) -> Any:
    """Return the dataclass ``kind`` that `write_record` wrote."""
    group, values = parent[name], {}
    for field in _record_fields(kind):
        if field.name in group.attrs:
            values[field.name] = group.attrs[field.name].item()
        elif field.name in group:
            value = group[field.name][()]
            values[field.name] = value.decode() if isinstance(value, bytes) else value
    return kind(**values)


def write_mapping(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> None:
    """Write names with numbers or text as the attributes of a group, in their order."""
    parent.create_group(name, track_order=True).attrs.update(values)


def read_mapping(parent: h5py.Group, name: str) -> dict[str, Any]:
    """Return what `write_mapping` wrote, numbers as Python numbers."""
    attributes = parent[name].attrs
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in attributes.items()}


def _record_fields(kind: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _empty_plane(group: h5py.Group, name: str, plane: np.ndarray) -> h5py.Dataset:
    if plane.ndim not in (1, 2):
        raise InputError(f"plane {name} must have 2 axes, or 1, got shape {plane.shape}")
    if not plane.size:
        return group.create_dataset(name, shape=plane.shape, dtype=plane.dtype)
    longest = CHUNK_PIX if plane.ndim == 2 else CHUNK_PIX**2
    chunks = tuple(min(size, longest) for size in plane.shape)
    options = {"chunks": chunks, "shuffle": True, "compression": "gzip", "compression_opts": COMPRESSION_LEVEL}
    return group.create_dataset(name, shape=plane.shape, dtype=plane.dtype, **options)


def _fast_deflate():
    """Return ISA-L's compressor, or None where it is not installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return lambda data: isal_zlib.compress(data, COMPRESSION_LEVEL)


def _write_chunks(dataset: h5py.Dataset, plane: np.ndarray, compress) -> None:
    """Shuffle and deflate chunks in threads (NumPy and ISA-L let them run), and hand them to HDF5 one by one."""
    corners = list(itertools.product(*(range(0, n, step) for n, step in zip(plane.shape, dataset.chunks, strict=True))))

    def encode(corner: tuple[int, ...]) -> bytes:
        box = tuple(slice(first, first + step) for first, step in zip(corner, dataset.chunks, strict=True))
        return compress(_shuffled(plane[box], dataset.chunks))

    with ThreadPoolExecutor(THREADS) as pool:
        for corner, data in zip(corners, pool.map(encode, corners), strict=True):
            dataset.id.write_direct_chunk(corner, data)


def _shuffled(tile: np.ndarray, shape: tuple[int, int]) -> bytes:
    """Return HDF5's shuffle of ``tile`` padded with 0 to ``shape``: first bytes of all pixels, then second ones, ..."""
    if tile.shape != shape:
        tile = np.pad(tile, [(0, full - part) for full, part in zip(shape, tile.shape, strict=True)])
    as_bytes = np.ascontiguousarray(tile).view(np.uint8).reshape(-1, tile.itemsize)
    return as_bytes.T.tobytes()
