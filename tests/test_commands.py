"""The commands one after the other, as the README gives them: raws in; calibrations, templates, products and pictures out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from small_survey import CAMERA
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.io.calibrations import read_calibrations
from nightstream.io.cameras import load_camera
from nightstream.io.products import read_detector_products, read_visit_status
from nightstream.io.templates import read_template


def succeed(*arguments) -> str:
    """Run a command that must succeed; return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def night(small_survey, tmp_path_factory):
    """What `run` made of one visit of the small survey: (folder, visit)."""
    output, visit = tmp_path_factory.mktemp("night"), small_survey.visits[0]
    stores = ("--calibrations", small_survey.calibrations, "--templates", small_survey.templates)
    succeed("run", small_survey.science, "-c", CAMERA, "-o", output, *stores, "--positions", small_survey.positions,
            "--executor", "local", "--visit", visit)  # fmt: skip
    return output, visit


def test_calibrate_and_template_fill_their_stores(small_survey, tmp_path):
    """The two commands make what the engine makes of the same raws, bit for bit."""
    raw, camera = small_survey.root / "raw", load_camera(CAMERA)
    succeed("calibrate", raw / "bias", raw / "dark", raw / "flat", "-c", CAMERA, "-o", tmp_path / "cal", "-d", 0)
    made = read_calibrations(tmp_path / "cal", camera.name, camera.detectors[0])
    wanted = read_calibrations(small_survey.calibrations, camera.name, camera.detectors[0])
    np.testing.assert_array_equal(made.flat.image, wanted.flat.image)
    succeed("template", raw / "template", "-c", CAMERA, "-o", tmp_path / "templates", "--calibrations", tmp_path / "cal",
            "--reference", small_survey.root / "reference.h5", "-d", 0)  # fmt: skip
    template = read_template(tmp_path / "templates", "r", 0)
    np.testing.assert_array_equal(template.pixels.image, read_template(small_survey.templates, "r", 0).pixels.image)


def test_run_writes_products_and_the_visit_master(night):
    """A file a detector with sources and forced photometry, and a status that says done."""
    output, visit = night
    status = read_visit_status(output / f"visit={visit}" / "visit.h5")
    assert [row["status"] for row in status] == ["done", "done"]
    products = read_detector_products(output / f"visit={visit}" / "detector=000.h5")
    assert len(products.dia_sources["ra"]) == status[0]["dia_sources"] > 0
    assert len(products.forced_sources["ra"]) == status[0]["forced_sources"] > 0


def test_show_prints_the_facts_and_draws_a_picture(night, tmp_path):
    """Sizes of planes and tables, the summary's numbers, and a PNG."""
    output, visit = night
    printed = succeed("show", output / f"visit={visit}" / "detector=000.h5", tmp_path / "look.png")
    assert all(word in printed for word in ("dia_sources:", "256 x 256 float32 (electron)", "psf_fwhm_pix", "science"))
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")


def test_show_of_a_visit_prints_how_its_detectors_ended(night):
    """A row a detector, and no picture, since a visit has no pixels of its own."""
    output, visit = night
    printed = succeed("show", output / f"visit={visit}" / "visit.h5")
    assert printed.count("done") == 2 and "psf_fwhm_pix" not in printed
    assert not (output / f"visit={visit}" / "visit.png").exists()


def test_export_writes_fits_with_the_same_pixels(night, tmp_path):
    """The difference in FITS is the difference in HDF5."""
    output, visit = night
    product = output / f"visit={visit}" / "detector=000.h5"
    succeed("export", product, tmp_path / "out.fits")
    with fits.open(tmp_path / "out.fits") as hdus:
        np.testing.assert_array_equal(hdus["DIFFERENCE"].data, read_detector_products(product).difference.pixels.image)


def test_raws_named_from_here_are_found_by_workers_elsewhere(small_survey, tmp_path, monkeypatch):
    """A relative path on the command line becomes absolute before a worker, perhaps on another machine, gets it."""
    from nightstream.commands.run import RunOptions, find_visits

    monkeypatch.chdir(small_survey.root)
    options = RunOptions(
        raws=[Path("raw/science")], camera=str(CAMERA), output=tmp_path, detectors=[], bands=[], visits=[], scheduler={}
    )
    visits, _ = find_visits(options, load_camera(CAMERA))
    assert len(visits) == 2
    assert all(Path(path).is_absolute() for visit in visits for path in visit.raw_paths.values())
