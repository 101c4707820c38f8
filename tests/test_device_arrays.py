"""The whole engine on arrays that do not mix with NumPy's: what would fail on a GPU fails here, without one."""

import dataclasses

import h5py
import numpy as np
import pytest
from cudashim import loader
from reduced_pair import expose, field
from small_survey import CAMERA, load_small_camera
from strict_cupy import CUPY, strict_cupy

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.config import AlignConfig, DifferenceConfig, SubtractConfig
from nightstream.engine.memory import DetectorMemory
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.subtraction import subtract_images
from nightstream.engine.template import build_template
from nightstream.io.calibrations import read_calibrations
from nightstream.io.cameras import engine_config
from nightstream.io.catalogues import read_positions
from nightstream.io.raw import read_raw
from nightstream.io.templates import read_template
from nightstream.scheduler.messages import DetectorJob, WorkerSetup
from nightstream.scheduler.resident import ResidentDetector

DETECTOR = 0


@pytest.fixture(autouse=True)
def compiler(request):
    """What a test without a card needs."""
    if not loader.has_compiler() and request.node.get_closest_marker("gpu") is None:
        pytest.skip("g++ is absent, so the .cu sources cannot run on the CPU")


def assert_same(left, right, path=""):
    """Fail unless two values of the engine have the same bits."""
    if dataclasses.is_dataclass(left):
        left, right = ({f.name: getattr(v, f.name) for f in dataclasses.fields(v)} for v in (left, right))
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for name in left:
            assert_same(left[name], right[name], f"{path}.{name}")
    elif isinstance(left, np.ndarray):
        assert isinstance(right, np.ndarray) and left.dtype == right.dtype, path
        np.testing.assert_array_equal(left, right, err_msg=path)
    elif not path.endswith(".provenance.device"):
        assert left == right or (left != left and right != right), path


def on_both(work):
    """Return what ``work`` makes of a memory on the CPU and of one on the strict device, downloaded."""
    direct = work(DetectorMemory("cpu"))
    with strict_cupy():
        memory = DetectorMemory("gpu")
        return direct, memory.download(work(memory))


def raws(survey, role, memory):
    camera = load_small_camera()
    return [memory.upload(read_raw(path, camera)) for path in sorted((survey.root / "raw" / role).glob(f"*_{DETECTOR:03d}.fits"))]


def test_calibrations_have_the_same_bits(small_survey):
    """Bias, dark, flat and defects."""
    camera = load_small_camera()
    config = engine_config(camera)

    def work(memory):
        frames = (raws(small_survey, role, memory) for role in ("bias", "dark", "flat"))
        return build_calibrations(*frames, camera.detectors[DETECTOR], config.calibrate, config.isr)

    assert_same(*on_both(work))


def test_a_visit_has_the_same_bits(small_survey):
    """From raw to forced photometry: images, tables and summary of a visit, and a template of two."""
    camera = load_small_camera()
    detector, config = camera.detectors[DETECTOR], engine_config(camera)
    calibrations = read_calibrations(small_survey.calibrations, camera.name, detector)
    template = read_template(small_survey.templates, "r", DETECTOR)
    positions = read_positions(small_survey.positions)

    def work(memory):
        host = DetectorMemory("cpu")
        pipeline = DetectorPipeline(detector, calibrations, template, config, memory.device)
        visit = pipeline.process(raws(small_survey, "science", host)[0], positions)
        done = calibrate_together(pipeline, raws(small_survey, "template", host))
        return {"visit": visit, "template": build_template([c.exposure for c in done], config.template)}

    assert_same(*on_both(work))


def test_a_worker_writes_the_same_product(small_survey, tmp_path):
    """Read to the device, computed there, and written from it: only the seconds and the device's name differ."""

    def bits(dataset):
        return np.asarray(dataset[()]).tobytes()

    def product(device):
        setup = WorkerSetup(
            camera=str(CAMERA), detector=DETECTOR, output_dir=str(tmp_path / device), device=device,
            calibration_dir=str(small_survey.calibrations), template_dir=str(small_survey.templates),
        )  # fmt: skip
        resident, visit = ResidentDetector(setup), small_survey.visits[0]
        job = DetectorJob(visit=visit, detector=DETECTOR, path=str(small_survey.raw(visit, DETECTOR)))
        with h5py.File(resident.write(resident.process(resident.read(job)))) as file:
            found = {}
            file.visititems(lambda name, item: found.update({name: bits(item)} if isinstance(item, h5py.Dataset) else {}))
        return found

    direct = product("cpu")
    with strict_cupy():
        assert_same(direct, product("gpu"))


def card():
    """CuPy, where it has a card."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    return cupy


def pipeline_on(device, survey):
    camera = load_small_camera()
    detector, config = camera.detectors[DETECTOR], engine_config(camera)
    calibrations = read_calibrations(survey.calibrations, camera.name, detector)
    return DetectorPipeline(detector, calibrations, read_template(survey.templates, "r", DETECTOR), config, device)


@pytest.mark.gpu
def test_a_card_gives_the_cpus_visit_and_the_same_bits_twice(small_survey):
    """Rounding of transforms and sums, 1e-6 of a pixel's light, is far below a hundredth of its noise but in the brightest
    stars, which count here by what the model of their own light may be off, 1e-4; sources lie within a hundredth of a pixel."""
    card()
    (raw, *_), positions = raws(small_survey, "science", DetectorMemory("cpu")), read_positions(small_survey.positions)
    here = pipeline_on("cpu", small_survey).process(raw, positions)
    there, again = (pipeline_on("gpu", small_survey).process(raw, positions) for _ in range(2))
    assert_same(there, again)
    for exposure in ("visit_image", "difference"):
        a, b = (getattr(products, exposure).pixels for products in (here, there))
        np.testing.assert_array_equal(a.mask, b.mask)
        allowed = 0.01 * np.sqrt(a.variance) + 1e-4 * np.abs(here.visit_image.pixels.image)
        assert np.nanmax(np.abs(a.image - b.image) / allowed) < 1
    for column in ("x", "y"):
        np.testing.assert_allclose(here.dia_sources[column], there.dia_sources[column], atol=0.01)


@pytest.mark.gpu
def test_a_warm_lane_allocates_nothing(small_survey):
    """After two visits the pools of device and page-locked memory have all that the third needs."""
    cupy = card()
    (raw, *_) = raws(small_survey, "science", DetectorMemory("cpu"))
    pipeline, held = pipeline_on("gpu", small_survey), []
    for _ in range(4):
        pipeline.process(raw)
        held.append((cupy.get_default_memory_pool().total_bytes(), cupy.get_default_pinned_memory_pool().n_free_blocks()))
    assert held[1] == held[2] == held[3]


@pytest.mark.parametrize(
    ("align", "difference", "score"),
    [
        ("none", {}, True),
        ("none", {"decorrelate": True, "kernel_basis": "delta", "spatial_order": 0}, False),
        ("none", {"method": "zogy"}, False),
        ("stars", {"convolve": "science"}, False),
    ],
    ids=["score", "delta", "zogy", "stars"],
)
def test_a_pair_of_reduced_images_has_the_same_bits(align, difference, score):
    """Preparation, alignment, matching or proper subtraction, and the score image, with missing and masked pixels."""
    stars = field(25, shape=(160, 176), border=20, low=1e4)
    pair = [expose(stars, shape=(160, 176), fwhm=fwhm, seed=i, saturation=3e4) for i, fwhm in enumerate((3.6, 3.0))]
    pair[1].image[:20, :30] = np.nan
    config = SubtractConfig(align=AlignConfig(mode=align), difference=DifferenceConfig(**difference), score=score)
    assert_same(*on_both(lambda memory: subtract_images(*map(memory.upload, pair), config)))


@pytest.mark.parametrize(
    "mixture",
    [
        lambda a: a + np.ones(3),
        lambda a: np.ones(3) * a,
        lambda a: np.asarray(a),
        lambda a: np.where(a > 0, a, 0.0),
        lambda a: CUPY.where(a > 0, a, np.zeros(3)),
        lambda a: CUPY.stack([a, np.ones(3)]),
        lambda a: a.__setitem__(slice(None), np.ones(3)),
        lambda a: CUPY.argsort(a, kind="mergesort"),
    ],
)
def test_the_stand_in_refuses_mixtures(mixture):
    """The check itself: what raises in CuPy raises here."""
    with pytest.raises((TypeError, ValueError)):
        mixture(CUPY.ones(3))
