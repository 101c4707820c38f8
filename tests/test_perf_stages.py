"""The benchmark of stages: its stopwatch, its time line, and the steps that it leaves out."""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import optional
import pytest
from small_survey import load_small_camera
from stopwatch import Span, Stopwatch, steps_timed
from timeline import heading, save_timeline, timeline_rows

from nightstream.engine.config import EngineConfig
from nightstream.engine.pipeline import DetectorPipeline
from nightstream.io.calibrations import read_calibrations
from nightstream.io.cameras import engine_config
from nightstream.io.raw import read_raw
from nightstream.io.templates import read_template

RECORD = Path(__file__).parents[1] / "perf" / "records" / "stages-cpu.json"


def span(name, depth, start_s, end_s):
    return {"name": name, "depth": depth, "start_s": start_s, "end_s": end_s, "core_s": end_s - start_s}


@pytest.fixture
def record():
    """A stage of two steps, one of them called twice, and a stage of none."""
    timeline = [
        span("total", 0, 0.0, 10.0), span("isr", 1, 0.0, 4.0), span("detect", 2, 0.0, 1.0), span("fit psf", 2, 1.0, 2.0),
        span("detect", 2, 2.0, 3.0), span("blink", 2, 3.0, 3.01), span("write", 1, 4.0, 10.0),
    ]  # fmt: skip
    header = {"cores": 2, "cpu": "a processor", "gpu": None}
    return {"header": header, "shape": [64, 32], "timeline": timeline}


def test_a_step_lies_within_its_stage():
    """Every span begins and ends within the one around it; seconds are counted from the run's start."""
    watch = Stopwatch()
    time.sleep(0.002)
    watch.start_run()
    with watch("stage"), watch("step"):
        pass
    step, stage = watch.runs[0]
    assert (stage.name, stage.depth, step.name, step.depth) == ("stage", 0, "step", 1)
    assert 0 <= stage.start_s <= step.start_s <= step.end_s <= stage.end_s < 0.002


def test_the_device_is_waited_for_at_both_ends():
    """Else a stage would be charged for the one before."""
    waits = []
    watch = Stopwatch(lambda: waits.append(True))
    watch.start_run()
    with watch("stage"):
        assert len(waits) == 1
    assert len(waits) == 2


@pytest.fixture(scope="module")
def pipeline(small_survey):
    """A pipeline of 256 pixels with a stopwatch, and a visit for it."""
    camera = load_small_camera()
    detector, watch = camera.detectors[0], Stopwatch()
    calibrations = read_calibrations(small_survey.calibrations, camera.name, detector)
    template = read_template(small_survey.templates, "r", detector.id)
    made = DetectorPipeline(detector, calibrations, template, engine_config(camera), "cpu", stage=watch)
    return made, read_raw(small_survey.raw(small_survey.visits[0], detector.id), camera), watch


def test_steps_are_timed_within_their_stages_if_asked(pipeline):
    """Each begins and ends within one of them; a run after that has stages alone."""
    made, raw, watch = pipeline
    for timed in (steps_timed(watch), nullcontext()):
        watch.start_run()
        with timed:
            made.process(raw)
    asked, plain = (sorted(run, key=lambda span: span.start_s) for run in watch.runs[-2:])
    assert {span.depth for span in plain} == {0} and {span.depth for span in asked} == {0, 1}
    stages = [span for span in asked if span.depth == 0]
    for step in (span for span in asked if span.depth == 1):
        assert any(stage.start_s <= step.start_s and step.end_s <= stage.end_s for stage in stages)
    assert {"isr": 0, "fit kernel": 1, "decorrelate": 1}.items() <= {span.name: span.depth for span in asked}.items()


def test_every_optional_step_has_its_cost(pipeline):
    """A range about the difference of medians; the pipeline itself is as it was."""
    made, raw, watch = pipeline
    before = made.config
    for cost in optional.measure_steps(made, raw, watch, runs=2).values():
        for kind in ("clock", "core"):
            least, most = cost[f"{kind}_range_s"]
            assert least - 1e-4 <= cost[f"{kind}_s"] <= most + 1e-4
    assert made.config is before and len(made.process(raw).dia_sources["x"]) > 0


@pytest.mark.parametrize("name", optional.STEPS)
def test_what_is_left_out_is_in_by_default(name):
    """The engine takes the settings, and they change its configuration."""
    step = optional.STEPS[name]
    assert EngineConfig.model_validate({step.section: step.without}) != EngineConfig()
    assert step.section in optional.JUDGED_BY


def test_a_saving_is_clear_if_no_run_without_took_longer():
    """Medians 5 and 2 differ by 3; the closest two runs by 1, the farthest by 5. Other stages do not count."""
    complete, without = (
        [{"isr": Span("isr", 1, 0, t, 2 * t), "write": Span("write", 1, 0, 9, 9)} for t in times]
        for times in ((4, 5, 6), (3, 2, 1))
    )
    saved = optional.saving(complete, without, ("isr",))
    assert saved == {"clock_s": 3, "clock_range_s": [1, 5], "core_s": 6, "core_range_s": [2, 10]}


def test_calls_of_a_step_share_a_row_under_their_stage(record):
    """And what is too short to be seen has none."""
    names = [[call["name"] for call in row] for row in timeline_rows(record["timeline"])]
    assert names == [["isr"], ["detect", "detect"], ["fit psf"], ["write"]]


def test_the_heading_says_what_was_timed_on_what(record):
    """Shape, total and device."""
    assert heading(record) == (
        "One detector of 64 x 32 pixels, raw file to HDF5 product: 10.00 s, 10.0 core-seconds\n2 cores of a processor"
    )
    record["header"]["gpu"] = {"name": "a card"}
    assert heading(record).endswith("\na card, 2 cores of a processor")


def test_the_time_line_is_a_small_picture(record, tmp_path):
    """A row a stage and step, and one of the record in the repository."""
    small, large = save_timeline(record, tmp_path / "a.png"), save_timeline(json.loads(RECORD.read_text()), tmp_path / "b.png")
    assert small.read_bytes().startswith(b"\x89PNG")
    assert small.stat().st_size < large.stat().st_size < 100_000
