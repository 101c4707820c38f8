"""What a worker keeps and is given: preloaded objects reach the forced photometry, and cutouts the product."""

import numpy as np
import pytest
from small_survey import CAMERA

from nightstream.io.products import read_cutouts, read_dia_tables
from nightstream.scheduler.messages import DetectorJob, WorkerSetup
from nightstream.scheduler.resident import ResidentDetector

PRELOAD = [("dia_object_id", "<i8"), ("ra", "<f8"), ("dec", "<f8")]


@pytest.fixture(scope="module")
def resident(small_survey, tmp_path_factory):
    """Detector 0 with a catalogue of positions."""
    setup = WorkerSetup(
        camera=str(CAMERA), detector=0, output_dir=str(tmp_path_factory.mktemp("out")), device="cpu",
        calibration_dir=str(small_survey.calibrations), template_dir=str(small_survey.templates),
        forced_positions=str(small_survey.positions),
    )  # fmt: skip
    return ResidentDetector(setup)


def job(survey, positions="") -> DetectorJob:
    visit = survey.visits[0]
    return DetectorJob(visit=visit, detector=0, path=str(survey.raw(visit, 0)), positions=str(positions))


def test_preloaded_objects_listed_positions_and_sources_are_measured(resident, small_survey, tmp_path):
    """One table: the preloaded objects, then those of the catalogue, then every DIASource; and a cutout of each source."""
    listed = resident.positions
    rows = np.zeros(2, dtype=PRELOAD)
    rows["dia_object_id"] = listed["dia_object_id"][0], 10**15  # one is in the catalogue, too
    rows["ra"], rows["dec"] = listed["ra"][0], listed["dec"][0]
    np.save(tmp_path / "positions.npy", rows)
    path = resident.write(resident.process(resident.read(job(small_survey, tmp_path / "positions.npy"))))
    tables, cutouts = read_dia_tables(path), read_cutouts(path)
    forced, sources = tables.forced_sources, tables.dia_sources
    known = forced["dia_object_id"] != 0
    assert forced["dia_object_id"][:2].tolist() == rows["dia_object_id"].tolist()
    assert len(set(forced["dia_object_id"][known])) == known.sum() > 2
    assert np.isin(forced["dia_object_id"][known][2:], listed["dia_object_id"]).all()
    np.testing.assert_array_equal(forced["dia_source_id"][~known], sources["dia_source_id"])
    assert not forced["dia_source_id"][known].any()
    np.testing.assert_allclose(forced["psf_flux"][~known], sources["psf_flux"], rtol=1e-5)  # the same place, by way of the sky
    assert len(cutouts) == len(sources["x"]) > 0
    np.testing.assert_allclose(cutouts.x, sources["x"], rtol=1e-6)  # the table has float32
    assert tables.summary["psf_flux_limit"] > 0


def test_a_lost_preload_is_told_and_fails_no_job(resident, small_survey, tmp_path, caplog):
    """Whoever publishes the visit measures the objects on the product, so that the pixels are worth having."""
    given = resident.read(job(small_survey, tmp_path / "gone.npy"))
    np.testing.assert_array_equal(given.positions["ra"], resident.positions["ra"])
    assert f"no such file [visit {small_survey.visits[0]}, detector 0, file {tmp_path / 'gone.npy'}]" in caplog.text
