"""Raw files become visits by what their headers say."""

from __future__ import annotations

import pytest
from realdata import real_data

from nightstream.engine.values import ExposureInfo
from nightstream.errors import FileError
from nightstream.io.cameras import load_camera
from nightstream.io.raw import read_info, read_raw
from nightstream.io.raw_folder import find_raw_files, group_visits, read_raw_folder


def info(visit, detector, path="a.fits", kind="science", band="r", mjd=60000.0):
    return ExposureInfo(
        visit=visit,
        detector=detector,
        camera="fake",
        kind=kind,
        band=band,
        exposure_time_s=30.0,
        dark_time_s=30.0,
        midpoint_mjd_tai=mjd,
        path=str(path),
    )


def test_fits_files_are_found_below_folders(tmp_path):
    """Folders give their FITS files, sorted, whatever the suffix's case; named paths are kept as they are."""
    (tmp_path / "night").mkdir()
    for name in ("b.FITS", "a.fits.fz", "c.fits.gz", "notes.txt"):
        (tmp_path / "night" / name).touch()
    found = find_raw_files([tmp_path / "night", tmp_path / "odd.name"])
    assert [path.name for path in found] == ["a.fits.fz", "b.FITS", "c.fits.gz", "odd.name"]


def test_unreadable_file_is_a_problem_not_an_error(tmp_path):
    """The others are returned, by time; the bad one keeps its reason."""
    infos = {"1.fits": info(2, 0, mjd=60002.0), "2.fits": info(1, 0, mjd=60001.0)}
    for name in (*infos, "3.fits"):
        (tmp_path / name).touch()

    def read(path, camera):
        if path.name not in infos:
            raise FileError("truncated", path=str(path))
        return infos[path.name]

    folder = read_raw_folder([tmp_path], None, read)
    assert [exposure.visit for exposure in folder.exposures] == [1, 2]
    assert [problem.message for problem in folder.problems] == ["truncated"]


def test_selection_is_by_kind_and_by_what_is_named(tmp_path):
    """An empty selection means all."""
    folder = read_raw_folder([], None)
    assert folder.select("science") == []
    from dataclasses import replace

    exposures = (info(1, 0), info(1, 1), info(2, 0, band="g"), info(3, 0, kind="bias"))
    folder = replace(folder, exposures=exposures)
    assert len(folder.select("science")) == 3
    assert [e.detector for e in folder.select("science", visits=[1])] == [0, 1]
    assert folder.select("science", detectors=[0], bands=["g"]) == [exposures[2]]


def test_visits_collect_their_detectors():
    """A second file of one exposure is told and left out, never silently preferred."""
    visits, doubles = group_visits([info(1, 0, "a"), info(1, 1, "b"), info(2, 0, "c"), info(1, 0, "d")])
    assert visits == {1: {0: "a", 1: "b"}, 2: {0: "c"}}
    assert [str(error) for error in doubles] == [
        "a second raw file of one exposure, the first is a [visit 1, detector 0, file d]"
    ]


def test_missing_and_broken_files_are_file_errors(tmp_path):
    """A path that is not there, and one that is no FITS file, both name the file."""
    broken = tmp_path / "broken.fits"
    broken.write_bytes(b"no FITS here" * 500)
    for path, message in ((tmp_path / "lost.fits", "no such file"), (broken, "not a readable FITS file")):
        with pytest.raises(FileError, match=message) as caught:
            read_info(path, load_camera("efosc2"))
        assert str(path) in str(caught.value)


@pytest.mark.real
def test_headers_alone_tell_what_the_whole_file_tells():
    """Six science frames, five biases and three flats of EFOSC2; the facts are those of the full read."""
    camera, root = load_camera("efosc2"), real_data("efosc2_raw")
    folder = read_raw_folder([root], camera)
    assert [len(folder.select(kind)) for kind in ("science", "bias", "flat", "dark")] == [6, 5, 3, 0]
    assert folder.problems == ()
    first = folder.exposures[0]
    assert read_raw(first.path, camera).info == first
