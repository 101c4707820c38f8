"""The store of templates: ``<directory>/band=<b>/detector=<nnn>.h5``.

/                   attributes: content, id, band, detector, format_version
template/           image, mask, variance (nJy), wcs (FITS cards), psf/
noise_correlation   autocorrelation of the noise
stars               table of isolated stars, brightest first
provenance, versions     groups of attributes
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from nightstream.engine.memory import to_host
from nightstream.engine.values import Template
from nightstream.errors import FileError, InputError
from nightstream.io.apdb import STAR
from nightstream.io.hdf5_file import create_file, open_file, read_mapping, read_record, write_mapping, write_record
from nightstream.io.hdf5_values import (
    describe_file,
    read_masked_image,
    read_table,
    read_wcs,
    write_masked_image,
    write_table,
    write_wcs,
)
from nightstream.kernels.psf import PsfModel

CONTENT = "template"


def template_path(directory: str | Path, band: str, detector: int) -> Path:
    """Return the file of one detector's template; signs in ``band`` that a path cannot hold are percent-encoded."""
    return Path(directory) / f"band={quote(band, safe=' #+')}" / f"detector={detector:03d}.h5"


def write_template(directory: str | Path, detector: int, template: Template) -> Path:
    """Write one detector's template, complete or not at all, and return the file's path."""
    path = template_path(directory, template.band, detector)
    with create_file(path, detector=detector) as file:
        describe_file(file, CONTENT, id=template.id, band=template.band, detector=detector)
        group = write_masked_image(file, "template", template.pixels, "nJy")
        write_wcs(group, template.wcs)
        write_record(group, "psf", template.psf)
        file.create_dataset("noise_correlation", data=to_host(template.noise_correlation))
        write_table(file, "stars", template.stars, STAR)
        write_mapping(file, "provenance", template.provenance)
    return path


def read_template(directory: str | Path, band: str, detector: int) -> Template:
    """Return the template of a detector in a band.

    Raises FileError when there is none or it cannot be read, InputError when it is of another band or detector.
    """
    path = template_path(directory, band, detector)
    if not path.exists():
        raise FileError(f"no template of detector {detector} in band {band}", detector=detector, path=str(path))
    with open_file(path, CONTENT) as file:
        found, wanted = (str(file.attrs["band"]), int(file.attrs["detector"])), (band, detector)
        if found != wanted:
            raise InputError(f"the template is of (band, detector) {found}, wanted {wanted}", detector=detector)
        return Template(
            id=str(file.attrs["id"]),
            band=band,
            pixels=read_masked_image(file["template"]),
            wcs=read_wcs(file["template"]),
            psf=read_record(file["template"], "psf", PsfModel),
            noise_correlation=file["noise_correlation"][()],
            stars=read_table(file, "stars", STAR),
            provenance=read_mapping(file, "provenance"),
        )
