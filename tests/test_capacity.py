"""How many cards or cores a camera needs, from records of known content."""

import json

import pytest
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.errors import FileError, InputError
from nightstream.scheduler.capacity import capacity, fewest_units, read_detector_cost, read_publish_seconds

STAGES = {"read": (0.02, 0.03), "isr": (0.004, 0.001), "difference": (0.012, 0.002), "write": (0.03, 0.05)}  # clock, core
# What leaving a step out saves: on the clock and of all cores, each with the range of it.
OPTIONAL = {
    "whitening": {"clock_s": 0.008, "clock_range_s": [0.007, 0.009], "core_s": 0.02, "core_range_s": [-0.01, 0.05]},
    "background": {"clock_s": 0.001, "clock_range_s": [-0.001, 0.002], "core_s": 0.003, "core_range_s": [0.002, 0.004]},
}
VISIT = {"detectors": 189, "pixels": 4_000_000}


@pytest.fixture
def records(tmp_path):
    """Records of a card, of a CPU, and of publishing."""
    stages = {name: {"median_s": clock, "core_s": core} for name, (clock, core) in STAGES.items()}
    stages["total"] = {"median_s": 99.0, "core_s": 99.0}
    for device, gpu in (("gpu", {"name": "a card"}), ("cpu", None)):
        header = {"device": device, "gpu": gpu, "cpu": "a processor"}
        record = {"header": header, "shape": [1000, 1000], "stages": stages, "optional": OPTIONAL}
        (tmp_path / f"stages-{device}.json").write_text(json.dumps(record))
    (tmp_path / "publish.json").write_text(json.dumps({"alerts": 5000, "sent_s": 4.0}))
    return tmp_path


def test_a_card_does_not_wait_for_files(records):
    """Four times the pixels, 16 ms a million: 95 turns of 64 ms on two cards, then 200 ms of files, then publishing."""
    done = capacity(read_detector_cost(records / "stages-gpu.json"), 2, publish_s=3.0, **VISIT)
    assert (done.turns, done.turn_s) == (95, pytest.approx(0.064))
    assert done.visit_s == pytest.approx(95 * 0.064)
    assert done.latency_s == pytest.approx(95 * 0.064 + 4 * 0.05 + 3.0)
    assert done.host_core_s == pytest.approx(189 * 4 * 0.083)


def test_a_core_does_everything_itself(records):
    """All core-seconds, files included."""
    done = capacity(read_detector_cost(records / "stages-cpu.json"), 10, **VISIT)
    assert done.visit_s == pytest.approx(19 * 4 * 0.083) == done.latency_s


def test_fewest_units_are_enough_and_one_less_is_not(records):
    """Whatever cadence and budget: the least number holds both."""
    cost = read_detector_cost(records / "stages-gpu.json")
    for cadence, budget in ((1.0, 60.0), (37.0, 4.0), (0.07, 9.0)):
        n = fewest_units(cost, cadence, budget, publish_s=3.0, **VISIT)
        assert capacity(cost, n, publish_s=3.0, **VISIT).holds(cadence, budget)
        assert n == 1 or not capacity(cost, n - 1, publish_s=3.0, **VISIT).holds(cadence, budget)
    assert fewest_units(cost, 37.0, 2.9, publish_s=3.0, **VISIT) is None


@pytest.mark.parametrize(("device", "saved_s"), [("gpu", 0.008), ("cpu", 0.02)])
def test_a_step_left_out_shortens_the_turn_by_what_it_costs(records, device, saved_s):
    """A card's turn by its clock time, a core's by its core-seconds, four times as many as a million pixels take."""
    cost = read_detector_cost(records / f"stages-{device}.json")
    without = cost.without(cost.optional[0])
    assert capacity(cost, 9, **VISIT).turn_s - capacity(without, 9, **VISIT).turn_s == pytest.approx(4 * saved_s)
    assert fewest_units(without, 1.3, 60.0, **VISIT) < fewest_units(cost, 1.3, 60.0, **VISIT)


def test_noise_is_that_of_the_time_that_counts(records):
    """A saving is clear if its range does not hold zero: on a card that of the clock, on a core that of all core-seconds."""
    card, core = (read_detector_cost(records / f"stages-{device}.json").optional for device in ("gpu", "cpu"))
    assert [step.is_clear for step in card] == [True, False]
    assert [step.is_clear for step in core] == [False, True]


def test_publishing_grows_with_the_alerts(records):
    """Half as long for half as many."""
    assert read_publish_seconds(records / "publish.json", 2500) == pytest.approx(2.0)


HEADER = '"header": {"device": "cpu", "cpu": "x"}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        f'{{{HEADER}, "shape": [1], "stages": {{}}}}',
        f'{{{HEADER}, "shape": [1, 1], "stages": []}}',
        f'{{{HEADER}, "shape": [1, 1], "stages": {{}}, "optional": {{"x": {{}}}}}}',
    ],
)
def test_other_files_are_refused(tmp_path, content):
    """What is no record is one clear error that names the file."""
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"record.*other\.json"):
        read_detector_cost(path)


def test_nonsense_is_refused(records):
    """No units at all."""
    with pytest.raises(InputError, match="got 0 units"):
        capacity(read_detector_cost(records / "stages-gpu.json"), 0, **VISIT)


def plan(records, *options):
    done = CliRunner().invoke(app, ["plan", "--camera", "lsstcam", "--publish-record", str(records / "publish.json"), *options])
    return done.exit_code, done.output


def test_the_command_says_whether_it_holds(records):
    """On one card LSSTCam's 189 detectors of 16 million pixels take 189 x 16 x 16 ms; on four a fourth."""
    record = ["--record", str(records / "stages-gpu.json")]
    code, output = plan(records, "--gpus", "1", *record)
    assert code == 0 and "does not hold the cadence of 37 s" in output and "enough: 2 cards" in output
    code, output = plan(records, "--gpus", "4", *record)
    assert code == 0 and "holds the cadence of 37 s" in output and "holds the budget of 60 s" in output
    assert "difference" in output and "75.0%" in output


def test_the_command_says_what_optional_steps_cost(records):
    """189 x 16.4 x 8 ms of a visit, and a card less, without whitening; nothing of the background, whose cost is noise."""
    code, output = plan(records, "--gpus", "1", "--record", str(records / "stages-gpu.json"))
    whitening, background = (next(line for line in output.splitlines() if name in line) for name in OPTIONAL)
    assert code == 0 and "24.80" in whitening and "1 card" in whitening
    assert "within noise" in background and "card" not in background


def test_a_record_without_optional_steps_has_no_table_of_them(records):
    """Nothing is made up."""
    record = json.loads((records / "stages-gpu.json").read_text())
    (records / "older.json").write_text(json.dumps({name: part for name, part in record.items() if name != "optional"}))
    code, output = plan(records, "--gpus", "1", "--record", str(records / "older.json"))
    assert code == 0 and "difference" in output and "without" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "wanted either --gpus or --cores"),
        (["--gpus", "2", "--cores", "2"], "wanted either --gpus or --cores"),
        (["--gpus", "2", "--record", "stages-cpu.json"], "got a record of a cpu, wanted one of a gpu"),
        (["--cores", "2", "--record", "none.json"], "no such record"),
    ],
)
def test_the_command_says_what_it_lacks(records, options, message):
    """One clear error."""
    code, output = plan(records, *[str(records / o) if o.endswith("json") else o for o in options])
    assert code == 1 and message in output
