"""Cameras: the YAML files that ship, and what a wrong one says."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import yaml
from realdata import real_data

from nightstream.engine.camera import Box
from nightstream.engine.config import EngineConfig
from nightstream.errors import ConfigError, FileError
from nightstream.io.cameras import CAMERA_DIR, engine_config, list_cameras, load_camera

CAMERAS = ["efosc2", "lsstcam", "simulator", "sinistro"]


def small_camera() -> dict:
    """A valid camera file of one detector with two amplifiers."""
    return {
        "name": "small",
        "pixel_scale_arcsec": 0.5,
        "headers": {
            "match": {"INSTRUME": "small"},
            "visit": "VISIT",
            "detector": {"default": 0},
            "kind": "KIND",
            "band": "BAND",
            "exposure_time": "EXPTIME",
            "midpoint": [{"keyword": "MJD", "scale": "tai", "at": "middle"}],
        },
        "layouts": {
            "pair": {
                "width": 8,
                "height": 6,
                "raw": {"x": [0, 6], "y": [0, 6]},
                "data": {"x": [1, 5], "y": [0, 6]},
                "gain": 1.5,
                "read_noise": [4, 5],
                "saturation_adu": 60000,
                "amplifiers": {"A": {"hdu": "A"}, "B": {"hdu": "B", "at": [4, 0], "flip": "x"}},
            }
        },
        "detectors": [{"first_id": 7, "names": ["one", "two"], "layout": "pair"}],
    }


def load(document, folder):
    path = folder / "small.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_camera(path)


def changed(path: str, value) -> dict:
    """The small camera with the field at the dotted ``path`` set, or removed where ``value`` is None."""
    document = small_camera()
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def test_the_cameras_that_ship_are_listed():
    """Every YAML file in the folder is a camera that can be asked for by name."""
    assert list_cameras() == CAMERAS
    assert all(load_camera(name).name == name for name in CAMERAS)


@pytest.mark.parametrize("name", CAMERAS)
def test_amplifiers_cover_every_detector_pixel_once(name):
    """No pixel of a detector is left out or claimed twice."""
    for detector in {d.shape: d for d in load_camera(name).detectors.values()}.values():
        times = np.zeros(detector.shape, np.int8)
        for amplifier in detector.amplifiers:
            times[amplifier.detector.slices] += 1
            assert amplifier.detector.shape == amplifier.data.shape
        assert times.min() == times.max() == 1


@pytest.mark.parametrize("name", CAMERAS)
def test_overscan_holds_no_data_pixel(name):
    """Serial overscan lies beside the data in the same rows, parallel overscan beyond it in the same columns."""
    for detector in load_camera(name).detectors.values():
        for amplifier in detector.amplifiers:
            data, serial, parallel = amplifier.data, amplifier.serial_overscan, amplifier.parallel_overscan
            assert serial.x0 >= data.x1 and (serial.y0, serial.y1) == (data.y0, data.y1)
            assert parallel is None or (parallel.y0 >= data.y1 and (parallel.x0, parallel.x1) == (data.x0, data.x1))


def test_lsstcam_has_the_published_detectors():
    """189 detectors, raft by raft, with the two vendors' shapes where they are mounted."""
    detectors = load_camera("lsstcam").detectors
    assert sorted(detectors) == list(range(189))
    assert [detectors[i].name for i in (0, 35, 94, 98, 188)] == ["R01_S00", "R10_S22", "R22_S11", "R22_S22", "R43_S22"]
    shapes = [detector.shape for detector in detectors.values()]
    assert (shapes.count((4000, 4072)), shapes.count((4004, 4096))) == (72, 117)


@pytest.mark.real
@pytest.mark.parametrize("raft", ["R10", "R22", "R43"])
def test_lsstcam_agrees_with_the_observatory(raft):
    """Vendor, amplifier order and constants of three rafts are those of Rubin's own camera description, within 30 %."""
    policy = yaml.safe_load((real_data("lsst_raw_format") / "policy" / f"lsstCam_{raft}.yaml").read_text())[raft]
    detectors = {detector.name: detector for detector in load_camera("lsstcam").detectors.values()}
    for slot, constants in policy["amplifiers"].items():
        detector = detectors[f"{raft}_{slot}"]
        assert detector.shape == ((4000, 4072) if policy["detectorType"] == "ITL" else (4004, 4096))
        assert [amplifier.name for amplifier in detector.amplifiers] == list(constants)
        gains = [value["gain"] for value in constants.values()]
        assert detector.amplifiers[0].gain == pytest.approx(np.median(gains), rel=0.3)


def test_simulator_amplifiers_differ():
    """All 64 channels have their own gain, or a gain applied to the wrong channel would go unseen."""
    detectors = load_camera("simulator").detectors.values()
    for detector in detectors:
        assert len({amplifier.gain for amplifier in detector.amplifiers}) == 16
    assert detector.raw_shape == (16, 520, 148) and detector.shape == (1024, 1024)


def test_a_camera_is_read_as_written(tmp_path):
    """Numbers, names, boxes, mirrors and per-amplifier constants come from the file; unset limits are infinite."""
    camera = load(small_camera(), tmp_path)
    assert list(camera.detectors) == [7, 8] and camera.detectors[8].name == "two"
    amplifier = camera.detectors[7].amplifiers[1]
    assert (amplifier.detector, amplifier.flip_x, amplifier.flip_y) == (Box(4, 8, 0, 6), True, False)
    assert (amplifier.gain, amplifier.read_noise, amplifier.suspect_adu) == (1.5, 5.0, float("inf"))


def test_a_detector_may_have_its_own_constants(tmp_path):
    """Constants listed with detectors replace those of their layout."""
    camera = load(changed("detectors.0.gain", [2.0, 3.0]), tmp_path)
    assert [amplifier.gain for amplifier in camera.detectors[7].amplifiers] == [2.0, 3.0]


def test_cameras_cross_process_borders():
    """A camera pickles to an equal camera."""
    camera = load_camera("simulator")
    assert pickle.loads(pickle.dumps(camera)) == camera


def test_an_unknown_camera_says_which_there_are(tmp_path):
    """The error names what was asked for and every camera that ships."""
    with pytest.raises(FileError, match=r"got camera 'hubble', wanted a YAML file or one of efosc2, lsstcam, sim"):
        load_camera("hubble")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pixel_scale_arcsec", None, r"field pixel_scale_arcsec: Field required"),
        ("pixel_scale_arcsec", -1, r"field pixel_scale_arcsec: Input should be greater than 0"),
        ("colour", "red", r"field colour: unknown setting"),
        ("headers.visit", {"keyword": "VISIT", "digit": 3}, r"field headers.visit.digit: unknown setting"),
        ("engine", {"isr": {"overscan": 1}}, r"field engine.*overscan"),
        ("headers.midpoint", [], r"field headers.midpoint: Tuple should have at least 1 item"),
        ("layouts.pair.data", [1, 5, 0, 6], r"layouts.pair.data: .*got \[1, 5, 0, 6\], wanted \{x: \[start"),
        ("layouts.pair.data", {"x": [5, 1], "y": [0, 6]}, r"layouts.pair.data: .*box needs 0 <= start <= stop"),
        ("layouts.pair.data", {"x": [1, 9], "y": [0, 6]}, r"layouts.pair: .*outside"),
        ("layouts.pair.serial_overscan", {"x": [5, 7], "y": [0, 6]}, r"serial_overscan ends at x 7"),
        ("layouts.pair.amplifiers.B.at", [3, 0], r"amplifiers A and B overlap on the detector"),
        ("layouts.pair.amplifiers.B.raw", {"x": [0, 5], "y": [0, 6]}, r"wanted one shape for all amplifiers"),
        ("layouts.pair.gain", [1, 2, 3], r"got gain \(1.0, 2.0, 3.0\), wanted 1 or 2 positive numbers"),
        ("layouts.pair.gain", None, r"got gain None, wanted 1 or 2 positive numbers"),
        ("detectors.0.layout", "triple", r"got layout 'triple', wanted one of pair"),
    ],
)
def test_a_wrong_camera_file_names_file_and_field(tmp_path, field, value, message):
    """One clear error, with the field, what was got and the file."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(changed(field, value), tmp_path)
    assert "small.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_detector_defined_twice_is_refused(tmp_path):
    """Two groups may not share a number."""
    document = small_camera()
    document["detectors"].append({"first_id": 8, "names": ["three"], "layout": "pair"})
    with pytest.raises(ConfigError, match="detector 8 is defined twice"):
        load(document, tmp_path)


@pytest.mark.parametrize("text", ["name: [", "just words", "", "\t- x"])
def test_a_file_that_is_no_camera_is_one_clear_error(tmp_path, text):
    """Broken or empty YAML ends as ConfigError that names the file."""
    with pytest.raises(ConfigError, match=r"small\.yaml"):
        load(text, tmp_path)


def test_camera_files_lie_beside_the_code():
    """The folder is part of the package, so that an installed Nightstream has its cameras."""
    assert (CAMERA_DIR / "simulator.yaml").is_file() and CAMERA_DIR.parent.name == "io"


def test_a_camera_sets_what_its_pixels_need():
    """Settings of the camera file overrule the engine's defaults, and the user's overrule both, field by field."""
    camera = load_camera("efosc2")
    assert engine_config(camera).isr.serial_overscan == "amplifier"
    config = engine_config(camera, {"isr": {"serial_overscan": "row_mean"}})
    assert (config.isr.serial_overscan, config.isr.overscan_skip_leading) == ("row_mean", 0)
    lsstcam = engine_config(load_camera("lsstcam"))
    assert (lsstcam.isr.overscan_skip_leading, lsstcam.isr.overscan_skip_trailing) == (3, 3)
    assert lsstcam.difference == EngineConfig().difference


def test_an_unknown_setting_is_named():
    """The error says which setting is wrong."""
    with pytest.raises(ConfigError, match=r"engine settings, field isr.overscan_skip: unknown setting"):
        engine_config(load_camera("efosc2"), {"isr": {"overscan_skip": 1}})
