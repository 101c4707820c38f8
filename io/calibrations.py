"""The store of calibrations: ``<directory>/<camera>/detector=<nnn>.h5``.

/                   attributes: content, camera, detector, ny, nx, format_version
bias/ dark/ flat/   image, mask, variance; those that exist
defects             mask planes to set
provenance, versions     groups of attributes
"""

from __future__ import annotations

from pathlib import Path

import h5py

from nightstream.engine.camera import Detector
from nightstream.engine.values import Calibrations
from nightstream.errors import CalibrationError, FileError, InputError
from nightstream.io.hdf5_file import create_file, open_file, read_mapping, write_mapping, write_plane
from nightstream.io.hdf5_values import describe_file, mask_attributes, read_masked_image, write_masked_image

CONTENT = "calibrations"
UNITS = {"bias": "electron", "dark": "electron/s", "flat": ""}


def calibration_path(directory: str | Path, camera: str, detector: int) -> Path:
    """Return the file of one detector's calibrations."""
    return Path(directory) / camera / f"detector={detector:03d}.h5"


def calibrated_detectors(directory: str | Path, camera: str) -> set[int]:
    """Return the detectors of the camera that have a file in the store, whatever is in it."""
    names = [path.stem.removeprefix("detector=") for path in calibration_path(directory, camera, 0).parent.glob("detector=*.h5")]
    return {int(name) for name in names if name.isdigit()}


def write_calibrations(directory: str | Path, camera: str, calibrations: Calibrations) -> Path:
    """Write one detector's calibrations, complete or not at all, and return the file's path."""
    path = calibration_path(directory, camera, calibrations.detector)
    shape = _common_shape(calibrations)
    with create_file(path, detector=calibrations.detector) as file:
        describe_file(file, CONTENT, camera=camera, detector=calibrations.detector, ny=shape[0], nx=shape[1])
        for name, unit in UNITS.items():
            if getattr(calibrations, name) is not None:
                write_masked_image(file, name, getattr(calibrations, name), unit)
        if calibrations.defects is not None:
            write_plane(file, "defects", calibrations.defects, mask_attributes())
        write_mapping(file, "provenance", calibrations.provenance)
    return path


def read_calibrations(directory: str | Path, camera: str, detector: Detector) -> Calibrations:
    """Return the calibrations of ``detector`` of the camera named ``camera``.

    Raises CalibrationError, naming the file, when there are none, or they are of another camera, detector or shape.
    """
    path = calibration_path(directory, camera, detector.id)
    if not path.exists():
        where = {"detector": detector.id, "path": str(path)}
        raise CalibrationError(f"no calibrations of detector {detector.id} of camera {camera}", **where)
    try:
        with open_file(path, CONTENT) as file:
            calibrations = _read(file)
            found = (str(file.attrs["camera"]), int(file.attrs["detector"]), _common_shape(calibrations))
    except (FileError, InputError) as error:
        raise CalibrationError(error.message, detector=detector.id, path=str(path)) from error
    _check(found, (camera, detector.id, detector.shape), path)
    return calibrations


def find_calibrations(directory: str | Path | None, camera: str, detector: Detector) -> Calibrations:
    """Return what `read_calibrations` does, or calibrations that change nothing where no store is given."""
    return read_calibrations(directory, camera, detector) if directory else Calibrations(detector=detector.id)


def _read(file: h5py.File) -> Calibrations:
    images = {name: read_masked_image(file[name]) for name in UNITS if name in file}
    return Calibrations(
        detector=int(file.attrs["detector"]),
        defects=file["defects"][()] if "defects" in file else None,
        provenance=read_mapping(file, "provenance"),
        **images,
    )


def _common_shape(calibrations: Calibrations) -> tuple[int, int]:
    """Return the one shape of all planes, (0, 0) if there is none."""
    images = {name: getattr(calibrations, name) for name in UNITS}
    shapes = {name: image.shape for name, image in images.items() if image is not None}
    if calibrations.defects is not None:
        shapes["defects"] = calibrations.defects.shape
    if len(set(shapes.values())) > 1:
        raise CalibrationError(f"calibrations of one detector must have one shape, got {shapes}")
    return next(iter(shapes.values()), (0, 0))


def _check(found: tuple, wanted: tuple, path: Path) -> None:
    for what, got, want in zip(("camera", "detector", "shape"), found, wanted, strict=True):
        if got != want and not (what == "shape" and got == (0, 0)):
            raise CalibrationError(f"calibration {what} is {got}, wanted {want}", detector=wanted[1], path=str(path))
