"""``nightstream subtract``: two reduced FITS images in, one difference out, with a picture of how good it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nightstream.commands.common import console, errors_end_the_command, read_yaml
from nightstream.errors import ConfigError

if TYPE_CHECKING:
    from nightstream.engine.config import SubtractConfig
    from nightstream.engine.values import Subtraction

SECTIONS = ("prepare", "align", "difference")  # of the configuration file
SHOWN = {  # diagnostic: what the table calls it
    "science_psf_fwhm_pix": "science FWHM, pixel",
    "template_psf_fwhm_pix": "template FWHM, pixel",
    "n_matched_stars": "stars that align the two",
    "registration_scatter_pix": "their scatter, pixel",
    "coverage": "template coverage",
    "photometric_scale": "science flux over template flux",
    "n_stamps_used": "stars in the kernel's fit",
    "spatial_order": "spatial order of the kernel",
    "effective_parameters": "parameters that the stars ask for",
    "condition_number": "condition number",
    "bright_residual_rms": "residual on bright stars, sigma",
    "noise_ratio": "scatter of empty sky over the variance plane's",
    "noise_correlation_x": "correlation of neighbours along x",
    "noise_correlation_y": "and along y",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtractOptions:
    """The arguments of ``subtract``; ``science_plane`` and ``template_plane`` are those of `read_reduced`."""

    science: Path
    template: Path
    output: Path
    picture: Path
    config: Path | None
    device: str
    settings: dict[str, dict[str, Any]]  # options that win over the file: section of `SubtractConfig`, field, value
    science_plane: dict[str, Any]
    template_plane: dict[str, Any]


def subtract_command(options: SubtractOptions) -> None:
    """Read, subtract, write, draw; print the numbers that say how good it is. Exits with 1 when it fails."""
    from nightstream.engine.memory import DetectorMemory
    from nightstream.engine.subtraction import subtract_images
    from nightstream.io.reduced_image import read_reduced, write_difference
    from nightstream.report.subtraction import save_subtraction

    with errors_end_the_command():
        start = time.perf_counter()
        config = load_config(options.config, options.settings)
        memory = DetectorMemory(options.device)
        with console.status("reading", spinner="dots"):
            pair = [
                memory.upload(read_reduced(path, **plane))
                for path, plane in ((options.science, options.science_plane), (options.template, options.template_plane))
            ]
        with console.status(f"subtracting on the {memory.device}", spinner="dots"):
            done = memory.download(subtract_images(*pair, config))
        provenance = {"science": str(options.science), "template": str(options.template), "config": config.model_dump_json()}
        write_difference(options.output, done, provenance)
        console.print(_report(done, options))
        save_subtraction(done, options.picture)
        console.print(f"wrote {options.output} and {options.picture} in {time.perf_counter() - start:.1f} s", markup=False)


def plane_options(gain, read_noise, saturation, extension: str, mask, variance, weight) -> dict[str, Any]:
    """Return the arguments of `read_reduced` for one image; what the header is to say is None."""
    return {
        "gain": gain or None,
        "read_noise": read_noise if read_noise >= 0 else None,
        "saturation": saturation or None,
        "extension": int(extension) if extension.isdigit() else extension or None,
        "mask": mask,
        "variance": variance,
        "weight": weight,
    }


def load_config(path: Path | None, settings: dict[str, dict[str, Any]]) -> SubtractConfig:
    """Return the configuration in the YAML file ``path``, with ``settings`` that are not None laid over it."""
    from pydantic import ValidationError

    from nightstream.engine.config import SubtractConfig

    tree: dict[str, Any] = read_yaml(path) if path is not None else {}
    for name, section in tree.items():
        if name in SECTIONS and not isinstance(section, dict | None):
            raise ConfigError(f"{name} must hold settings, got {section!r}", path=str(path))
    tree["difference"] = {"decorrelate": False} | (tree.get("difference") or {})
    for name, fields in settings.items():
        given = {field: value for field, value in fields.items() if value is not None}
        if name:
            tree[name] = (tree.get(name) or {}) | given
        else:
            tree |= given
    try:
        return SubtractConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}, got {first['input']!r}", path=str(path) if path else None) from None


def _report(done: Subtraction, options: SubtractOptions) -> Table:
    table = Table(title=f"{options.science.name} - {options.template.name}", show_header=False)
    for key, name in SHOWN.items():
        if key in done.diagnostics:
            table.add_row(name, f"{done.diagnostics[key]:.4g}")
    return table
