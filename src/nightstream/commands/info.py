"""``nightstream info``: versions, devices, cameras."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rich.table import Table

from nightstream.commands.common import console, errors_end_the_command

if TYPE_CHECKING:
    from nightstream.engine.memory import Device

PACKAGES = ("numpy", "scipy", "numba", "astropy", "h5py", "ray", "cupy", "isal", "matplotlib")


def info_command(device: Device) -> None:
    """Print what this installation is and what it finds; an error if that is not the device asked for."""
    from nightstream import __version__
    from nightstream.engine.memory import resolve_device

    with errors_end_the_command():
        console.print(f"nightstream {__version__}, Python {sys.version.split()[0]}, {platform.platform()}")
        console.print(", ".join(f"{name} {_version(name)}" for name in PACKAGES))
        for line in device_lines():
            console.print(line, markup=False)
        console.print(camera_table())
        resolve_device(device)


def device_lines() -> Iterator[str]:
    """Say what can compute here: cores, then each card, or why there is none."""
    from nightstream.engine.memory import gpu_problem
    from nightstream.scheduler.config import usable_cores

    yield f"CPU: {usable_cores()} cores"
    problem = gpu_problem()
    if problem is not None:
        yield f"GPU: none ({problem})"
        return
    import cupy

    for device in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(device)
        capability = f"sm_{properties['major']}{properties['minor']}"
        memory = properties["totalGlobalMem"] / 2**30
        yield f"GPU {device}: {properties['name'].decode()}, {capability}, {memory:.0f} GiB"


def camera_table() -> Table:
    """The cameras that come with the installation."""
    from nightstream.io.cameras import list_cameras, load_camera

    table = Table("camera", "detectors", "amplifiers", "shape (y, x)", "arcsec / pixel")
    for name in list_cameras():
        camera = load_camera(name)
        detector = next(iter(camera.detectors.values()))
        shape, amplifiers = " x ".join(map(str, detector.shape)), str(len(detector.amplifiers))
        table.add_row(name, str(len(camera.detectors)), amplifiers, shape, f"{camera.pixel_scale_arcsec:g}")
    return table


def _version(package: str) -> str:
    for name in (package, f"{package}-cuda12x", f"{package}-cuda13x"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "absent"
