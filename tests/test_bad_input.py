"""Bad input, end to end: one clear error, everything else of the visit done, nothing partial, and it is all told."""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from small_survey import CAMERA, SmallSurvey
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.io.products import product_path, read_detector_products, read_visit_status, write_visit_master
from nightstream.kernels.mask import MaskPlane
from nightstream.scheduler.executor import place_setups
from nightstream.scheduler.local_executor import LocalExecutor
from nightstream.scheduler.messages import WorkerSetup
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.run import RunHooks, Visit, run_visits

BAD, GOOD = 0, 1  # detectors: what is wrong is wrong with the first


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def survey(small_survey, tmp_path) -> SmallSurvey:
    """A survey to break."""
    return small_survey.copy_to(tmp_path)


def process(survey: SmallSurvey, output: Path, visit: int, **changes):
    """Run one visit in process, as the command does; return the summary and the reports."""
    setups = {
        detector: WorkerSetup(
            camera=str(CAMERA), detector=detector, output_dir=str(output), device="cpu",
            **{"calibration_dir": str(survey.calibrations), "template_dir": str(survey.templates)} | changes,
        )
        for detector in (BAD, GOOD)
    }  # fmt: skip
    reports = {}
    hooks = RunHooks(
        on_report=lambda report: reports.update({report.detector: report}),
        write_master=lambda number, ended: write_visit_master(output, number, ended),
    )
    raws = {detector: str(survey.raw(visit, detector)) for detector in setups}
    workers = place_setups(setups, 1)
    return run_visits([Visit(visit, raws)], workers, LocalExecutor(), AdmissionPolicy(), hooks), reports


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def gzip_half(path: Path) -> None:
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


def edit(change):
    """The breaker of a raw file that lets ``change`` loose on its HDUs."""

    def breaker(path: Path) -> None:
        with fits.open(path, memmap=False) as hdus:
            hdus = fits.HDUList([hdu.copy() for hdu in hdus])
        change(hdus)
        hdus.writeto(path, overwrite=True)

    return breaker


def pixels(make):
    """A change of every amplifier's pixels."""

    def change(hdus) -> None:
        for index, hdu in enumerate(hdus[1:], start=1):
            hdus[index] = fits.ImageHDU(make(hdu.data), name=hdu.name)

    return change


def cut_amplifier(hdus) -> None:
    hdus[2] = fits.ImageHDU(hdus[2].data[:-5, :-3], name=hdus[2].name)


def other_camera(hdus) -> None:
    hdus[0].header["INSTRUME"] = "somebody else's"


RAWS = {
    "truncated": (truncate, r"truncated FITS file: got \d+ bytes, wanted at least \d+"),
    "truncated gzip": (gzip_half, "truncated or damaged gzip file"),
    "missing": (Path.unlink, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "got an empty file, wanted FITS"),
    "text": (lambda path: path.write_text("not FITS at all\n" * 500), "not a readable FITS file"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(1).bytes(9000)), "not a readable FITS file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    "other camera": (edit(other_camera), r"wrong camera: got INSTRUME .*, wanted 'nightstream-sim'"),
    "other detector": (edit(lambda h: h[0].header.set("DETECTOR", 1)), "got detector 1 in the header, wanted 0"),
    "other visit": (edit(lambda h: h[0].header.set("VISIT", 7)), r"got visit 7 in the header, wanted \d+"),
    "no time": (edit(lambda h: h[0].header.remove("MJD-BEG")), "header tells no time: wanted keyword MJD-BEG"),
    "no amplifier": (edit(lambda h: h.pop(2)), "got 3, wanted 4 amplifiers, without C11"),
    "no pixels": (edit(lambda h: [h.pop() for _ in range(4)]), "got 0, wanted 4 amplifiers"),
    "small amplifier": (edit(cut_amplifier), r"C11: got HDU shape \(131, 145\), wanted \(136, 148\)"),
    "NaN": (edit(pixels(lambda a: np.full(a.shape, np.nan, np.float32))), r"got \d+ NaN or infinite pixels, wanted none"),
    "saturated": (edit(pixels(lambda a: np.full_like(a, 65535))), "all 4 amplifiers of S00 are dead: a frame of one value"),
    "saturated data": (edit(pixels(lambda a: saturate(a))), r"unusable \(\d+\.\d% saturated\), wanted at most 90\.0%"),
    "constant": (edit(pixels(lambda a: np.full_like(a, 1000))), "all 4 amplifiers of S00 are dead: a frame of one value"),
    "no stars": (edit(pixels(lambda a: blank(a))), "star"),
}  # fmt: skip


def saturate(amplifier: np.ndarray) -> np.ndarray:
    """Light everywhere, the overscan as it was."""
    full = amplifier.copy()
    full[:128, 4:132] = 65535
    return full


def blank(amplifier: np.ndarray) -> np.ndarray:
    """The overscan's noise everywhere: an exposure behind a closed shutter."""
    return np.random.default_rng(1).normal(1000, 5, amplifier.shape).astype(amplifier.dtype)


def rewrite(name):
    """The breaker of an HDF5 file's dataset: every plane below ``name`` loses its last rows."""

    def breaker(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            planes = file[name]
            for key in list(planes):
                rows = planes[key][:-16]
                del planes[key]
                planes[key] = rows

    return breaker


def shrink(path: Path) -> None:
    """Make all planes those of a smaller detector."""
    for name in ("bias", "dark", "flat"):
        rewrite(name)(path)
    with h5py.File(path, "r+") as file:
        rows = file["defects"][:-16]
        del file["defects"]
        file["defects"] = rows


def mask_all(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["defects"][...] = 1


def move_away(path: Path) -> None:
    """Point the template at another place of the sky."""
    with h5py.File(path, "r+") as file:
        text = file["template/wcs"].asstr()[()]
        file["template/wcs"][()] = re.sub(r"(CRVAL2 *=) *\S+", r"\1                 12.5", text)


def saturate_template(path: Path) -> None:
    """Mark every pixel of a template SAT, and keep its stars."""
    with h5py.File(path, "r+") as file:
        file["template/mask"][...] |= int(MaskPlane.SAT)


CALIBRATIONS = {
    "missing": (Path.unlink, "no calibrations of detector"),
    "truncated": (truncate, "could not read calibrations"),
    "empty": (lambda path: path.write_bytes(b""), "could not read calibrations"),
    "text": (lambda path: path.write_text("not HDF5"), "could not read calibrations"),
    "other detector's": (lambda path: shutil.copy(path.with_name("detector=001.h5"), path), "detector is 1, wanted 0"),
    "misshapen flat": (rewrite("flat"), r"must have one shape, got .*\(240, 256\)"),
    "smaller detector's": (shrink, r"calibration shape is \(240, 256\), wanted \(256, 256\)"),
    "all masked": (mask_all, r"100\.0% of the pixels are unusable"),
}
TEMPLATES = {
    "missing": (Path.unlink, "no template of detector"),
    "truncated": (truncate, "could not read template"),
    "empty": (lambda path: path.write_bytes(b""), "could not read template"),
    "calibrations": (
        lambda path: shutil.copy(path.parents[2] / "calibrations/small/detector=000.h5", path),
        "holds calibrations",
    ),
    "other detector's": (lambda path: shutil.copy(path.with_name("detector=001.h5"), path), r"\(band, detector\) \('r', 1\)"),
    "elsewhere": (move_away, "overlap|cover|match"),
}


def check_one_failure(survey: SmallSurvey, output: Path, visit: int, message: str, path: Path, kept: bool = False) -> None:
    """Process a visit; the first detector must fail with ``message`` and name ``path``, the second must be done.

    What failed leaves no product, unless its visit image is ``kept``."""
    summary, reports = process(survey, output, visit)
    error = reports[BAD].error
    assert re.search(message, error), error
    assert "\n" not in error and f"[visit {visit}, detector {BAD}, file {path}]" in error
    assert [frame.status for frame in summary.visits[0].frames] == ["failed", "done"] and not summary.is_complete
    products = [f"visit={visit}/detector={detector:03d}.h5" for detector in ((BAD, GOOD) if kept else (GOOD,))]
    assert files_under(output) == [*products, f"visit={visit}/visit.h5"]
    rows = read_visit_status(output / f"visit={visit}" / "visit.h5")
    assert [(row["status"], row["error"]) for row in rows] == [("failed", error), ("done", "")]
    assert len(read_detector_products(product_path(output, visit, GOOD)).dia_sources["ra"]) > 0


@pytest.mark.parametrize("case", RAWS)
def test_bad_raw_file_fails_its_detector_alone(case, survey, tmp_path):
    """Whatever is wrong with a raw file, the error names it, and the rest of the visit is done."""
    breaker, message = RAWS[case]
    visit = survey.visits[0]
    breaker(survey.raw(visit, BAD))
    check_one_failure(survey, tmp_path / "out", visit, message, survey.raw(visit, BAD))


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_bad_calibrations_fail_their_detector_alone(case, survey, tmp_path):
    """Calibrations that are absent, broken or of something else are named."""
    breaker, message = CALIBRATIONS[case]
    breaker(survey.calibration(BAD))
    visit = survey.visits[0]
    path = survey.raw(visit, BAD) if case == "all masked" else survey.calibration(BAD)
    check_one_failure(survey, tmp_path / "out", visit, message, path)


@pytest.mark.parametrize("case", TEMPLATES)
def test_bad_template_fails_its_detector_alone(case, survey, tmp_path):
    """A template that is absent, broken, of something else or of another field is named; the last leaves a visit image."""
    breaker, message = TEMPLATES[case]
    breaker(survey.template(BAD))
    visit = survey.visits[0]
    elsewhere = case == "elsewhere"
    path = survey.raw(visit, BAD) if elsewhere else survey.template(BAD)
    check_one_failure(survey, tmp_path / "out", visit, message, path, kept=elsewhere)


def test_failed_difference_keeps_the_visit_image(survey, tmp_path):
    """A template without a usable star fails its detector, in one line; the calibrated image stays, and says why it is alone."""
    visit, output = survey.visits[0], tmp_path / "out"
    saturate_template(survey.template(BAD))
    message = "no usable star among .* for the matching kernel: .* with bad pixels"
    check_one_failure(survey, output, visit, message, survey.raw(visit, BAD), kept=True)
    kept = read_detector_products(product_path(output, visit, BAD))
    assert kept.difference is None and re.match(message, kept.provenance["no_difference"])
    assert kept.summary["n_psf_stars"] > 0 and np.isfinite(kept.visit_image.pixels.image).any()
    with h5py.File(output / f"visit={visit}" / "visit.h5") as master:
        assert set(master["detectors"]) == {"status", "000", "001"}


def test_flat_of_another_band_fails_the_detector(survey, tmp_path):
    """A science exposure is not divided by the flat of another filter."""
    visit = survey.visits[0]
    fits.setval(survey.raw(visit, BAD), "FILTER", value="g")
    summary, reports = process(survey, tmp_path / "out", visit, template_dir=None)
    assert [frame.status for frame in summary.visits[0].frames] == ["failed", "done"]
    where = f"[visit {visit}, detector {BAD}, file {survey.raw(visit, BAD)}]"
    assert reports[BAD].error == f"flat is of band r, wanted g {where}"


def test_visit_too_large_to_number_is_refused_when_read(survey, tmp_path):
    """Source numbers hold 41 bits of visit; the error comes before the work, and only where there are sources."""
    visit = 1 << 41
    for detector in (BAD, GOOD):
        shutil.copy(survey.raw(survey.visits[0], detector), survey.raw(visit, detector))
        fits.setval(survey.raw(visit, detector), "VISIT", value=visit)
    _, reports = process(survey, tmp_path / "out", visit)
    for report in reports.values():
        assert "visit of a source number must be in 0..2199023255551, got 2199023255552" in report.error
        assert "isr" not in report.timings_s
    summary, _ = process(survey, tmp_path / "out", visit, template_dir=None)
    assert summary.is_complete


def test_full_disk_fails_what_it_hits_alone(survey, tmp_path, monkeypatch):
    """A disk that is full in the middle of a product leaves none of it."""
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        if "detector=000" not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    visit, output = survey.visits[0], tmp_path / "out"
    product = product_path(output, visit, BAD)
    check_one_failure(survey, output, visit, "could not write the file: No space left on device", product)


def test_output_that_cannot_be_written_is_told(survey, tmp_path):
    """A file where the visit's folder should be fails every detector and the master, each with its name."""
    visit, output = survey.visits[0], tmp_path / "out"
    output.mkdir()
    (output / f"visit={visit}").write_text("in the way")
    summary, reports = process(survey, output, visit)
    for detector, report in reports.items():
        assert "could not write the file" in report.error and str(product_path(output, visit, detector)) in report.error
    assert "visit.h5" in summary.visits[0].error and not summary.is_complete
    assert files_under(output) == [f"visit={visit}"]


def test_failed_rerun_leaves_no_older_product(survey, tmp_path):
    """What failed now must not look done: its older product and link go; the other detector is of this run."""
    visit, output = survey.visits[0], tmp_path / "out"
    summary, _ = process(survey, output, visit)
    assert summary.is_complete and product_path(output, visit, BAD).exists()
    truncate(survey.raw(visit, BAD))
    check_one_failure(survey, output, visit, "truncated FITS file", survey.raw(visit, BAD))
    with h5py.File(output / f"visit={visit}" / "visit.h5") as master:
        assert set(master["detectors"]) == {"status", "001"}


def run_command(survey: SmallSurvey, output: Path, *options: str):
    """``nightstream run`` on the science raws, in process."""
    arguments = ["run", survey.science, "--camera", CAMERA, "--output", output, "--calibrations", survey.calibrations,
                 "--templates", survey.templates, "--positions", survey.positions, "--executor", "local",
                 "--device", "cpu", *options]  # fmt: skip
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_says_what_failed(survey, tmp_path):
    """Status 1; the table names visit, detector and error of a broken raw, an unreadable one and an absent one."""
    first, second = survey.visits
    truncate(survey.raw(first, BAD))
    survey.raw(second, BAD).write_bytes(b"")
    result = run_command(survey, tmp_path / "out")
    assert result.exit_code == 1 and "Traceback" not in result.output
    table = re.sub(r"[\s│]", "", result.output[result.output.index("3 failed") :])  # cells are folded
    assert re.search(rf"{first}0truncatedFITSfile[^]]*visit{first},detector0,file[^]]*{first}_000", table)
    assert re.search(rf"\?\?notareadableFITSfile[^]]*{second}_000", table)
    assert re.search(rf"{second}0noreadablerawfileofthisdetector\[visit{second},detector0,file[^]]*science]", table)
    assert f"visit {second}: 1 of 2 detectors" in result.output
    rows = read_visit_status(tmp_path / "out" / f"visit={second}" / "visit.h5")
    assert [row["status"] for row in rows] == ["missing", "done"] and "no readable raw file" in rows[0]["error"]


def test_absent_raw_is_missing_and_keeps_what_was_done(survey, tmp_path):
    """A detector with calibrations and no raw file is reported; who restricts the run is not bothered."""
    visit, output = survey.visits[0], tmp_path / "out"
    only = ("--visit", str(visit))
    assert run_command(survey, output, *only, "--detector", "0").exit_code == 0
    survey.raw(visit, BAD).unlink()
    assert run_command(survey, output, *only, "--detector", "1").exit_code == 0
    result = run_command(survey, output, *only)
    assert result.exit_code == 1 and "no readable raw file of this detector" in result.output
    rows = read_visit_status(output / f"visit={visit}" / "visit.h5")
    assert [row["status"] for row in rows] == ["done", "done"]  # its product of the first run stands
    assert files_under(output / f"visit={visit}") == ["detector=000.h5", "detector=001.h5", "visit.h5"]
