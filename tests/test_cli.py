"""The command line: quick help, clear errors, honest exit statuses."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import typer
from fake_hosts import FakeHost
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.commands import run as run_module
from nightstream.commands.common import Settings, errors_end_the_command, load_settings
from nightstream.engine.values import ExposureInfo
from nightstream.errors import ConfigError, FileError
from nightstream.io.cameras import load_camera
from nightstream.io.raw_folder import RawFolder
from nightstream.scheduler.local_executor import LocalExecutor

HEAVY = ("numpy", "numba", "scipy", "astropy", "h5py", "ray", "cupy", "matplotlib", "pydantic", "yaml")
COMMANDS = ("run", "calibrate", "template", "export", "show", "precover", "info", "simulate", "demo")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_imports_nothing_heavy():
    """The modules that cost seconds are not imported for --help, so it stays quick on any machine."""
    code = f"""
import sys
from nightstream.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    """Each command explains itself."""
    result = invoke(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


def test_version_is_printed():
    """--version needs no command."""
    from nightstream import __version__

    result = invoke("--version")
    assert result.exit_code == 0 and result.output.strip() == f"nightstream {__version__}"


def test_info_names_packages_devices_and_cameras():
    """What is installed, what can compute and which cameras there are."""
    result = invoke("info")
    assert result.exit_code == 0
    assert all(word in result.output for word in ("nightstream", "numpy", "CPU:", "GPU", "lsstcam", "efosc2"))


@pytest.mark.parametrize(("device", "status"), [("auto", 0), ("cpu", 0), ("gpu", 1)])
def test_info_fails_where_a_card_is_asked_for_and_none_works(device, status, monkeypatch):
    """An option of every command, or NIGHTSTREAM_DEVICE: a container's health check asks in this way."""
    monkeypatch.setattr("nightstream.engine.memory.gpu_problem", lambda: "the card is gone")
    assert invoke("info", "--device", device).exit_code == status
    monkeypatch.setenv("NIGHTSTREAM_DEVICE", device)
    result = invoke("info")
    assert result.exit_code == status and ("a GPU was asked for, but the card is gone" in result.output) == bool(status)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "raws", "-c", "nowhere", "-o", "out"), "got camera 'nowhere'"),
        (("run", ".", "-c", "efosc2", "-o", "out", "-d", "99"), "camera efosc2 has no detector 99"),
        (("run", ".", "-c", "efosc2", "-o", "out", "--calibrations", "nowhere"), "nowhere"),
        (("run", ".", "-c", "efosc2", "-o", "out", "--executor", "cloud"), "'cloud' is not one of"),
        (("run", ".", "-c", "efosc2", "-o", "out", "--device", "tpu"), "'tpu' is not one of"),
        (("run", ".", "-c", "efosc2", "-o", "out"), "no science exposures of efosc2"),
        (("calibrate", ".", "-c", "efosc2", "-o", "out"), "no bias, dark or flat of efosc2"),
        (("template", ".", "-c", "efosc2", "-o", "out"), "no science exposures of efosc2"),
        (("export", "nowhere.h5", "out.fits"), "nowhere.h5"),
        (("show", "nowhere.h5"), "nowhere.h5"),
        (("run",), "Missing"),
        (("fly",), "fly"),
    ],
)
def test_wrong_usage_is_one_clear_error(arguments, message, tmp_path, monkeypatch):
    """Status 2, a message that names the trouble, no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raws").mkdir()
    result = invoke(*arguments)
    assert result.exit_code == 2 and message in result.output
    assert "Traceback" not in result.output


def test_file_that_is_no_product_is_a_failure(tmp_path):
    """Status 1 when the input is there but broken."""
    product = tmp_path / "product.h5"
    product.write_text("not HDF5")
    for command in (("export", product, tmp_path / "out.fits"), ("show", product)):
        result = invoke(*command)
        assert result.exit_code == 1 and "error:" in result.output and "product.h5" in result.output
    assert not (tmp_path / "out.fits").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheduler: {max_inflight: 3}", "scheduler.max_inflight: unknown setting"),
        ("scheduler: {retries: -1}", "scheduler.retries: input should be greater than or equal to 0, got -1"),
        ("engine: {isr: {colour: red}}", "colour"),
        ("engine: {isr: 3}", "engine.isr must hold settings, got 3"),
        ("engin: {}", "unknown section engin; there are engine, scheduler, alerts"),
        ("- 1", "wanted sections with settings, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_configuration_names_file_and_key(text, message, tmp_path):
    """A typing error in a configuration file is never ignored."""
    path = tmp_path / "night.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, load_camera("efosc2"))
    assert message in str(caught.value) and "night.yaml" in str(caught.value)


def test_options_win_over_the_file_and_the_file_over_the_camera(tmp_path):
    """The later word counts; what nobody sets stays at its default."""
    path = tmp_path / "night.yaml"
    path.write_text("scheduler: {retries: 7, actors: 3}\nengine: {isr: {overscan_skip_leading: 1}}")
    settings = load_settings(path, load_camera("efosc2"), {"actors": 5, "executor": None})
    assert isinstance(settings, Settings)
    assert (settings.scheduler.retries, settings.scheduler.actors, settings.scheduler.executor) == (7, 5, "ray")
    assert settings.config.isr.overscan_skip_leading == 1
    assert settings.config.isr.serial_overscan == "amplifier"  # as efosc2 needs it


def exposure(visit, path):
    return ExposureInfo(
        visit=visit,
        detector=0,
        camera="efosc2",
        kind="science",
        band="g",
        exposure_time_s=30.0,
        dark_time_s=30.0,
        midpoint_mjd_tai=60000.0 + visit,
        path=path,
    )


@pytest.fixture
def fake_night(monkeypatch):
    """Two visits of one detector, the second as the test says, run by fake hosts in this process."""

    def make(second, problems=()):
        folder = RawFolder(exposures=(exposure(1, "good.fits"), exposure(2, second)), problems=tuple(problems))
        monkeypatch.setattr("nightstream.io.raw_folder.read_raw_folder", lambda paths, camera: folder)
        monkeypatch.setattr(run_module, "make_executor", lambda settings: LocalExecutor(FakeHost))

    return make


def test_run_succeeds_and_prints_a_line_and_a_row_for_each_visit(fake_night, tmp_path):
    """Status 0 and a master for each visit when all went well."""
    fake_night("good.fits")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert "visit 1: 1 of 1 detectors, 10 sources" in result.output and "2 visits in" in result.output
    assert sorted(path.parent.name for path in tmp_path.rglob("visit.h5")) == ["visit=1", "visit=2"]


def test_run_says_what_failed(fake_night, tmp_path):
    """Status 1; the table names visit, detector and error; the other visit is done."""
    fake_night("bad.fits")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path)
    assert result.exit_code == 1
    assert "visit 2: 0 of 1 detectors" in result.output and "FAILED: detector 0" in result.output
    assert "unreadable" in result.output and "visit 1: 1 of 1 detectors" in result.output


def test_selection_that_leaves_nothing_says_what_there_is(fake_night, tmp_path):
    """Status 2, and the bands and visits that could have been asked for."""
    fake_night("good.fits")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path, "--band", "r")
    assert result.exit_code == 2
    assert "as asked for; there are detector 0; band g; visit 1, 2" in result.output


def test_run_says_what_its_products_will_lack(fake_night, tmp_path):
    """A forgotten option is told at the start, not found in the morning."""
    fake_night("good.fits")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path)
    assert "no --calibrations" in result.output and "no --templates" in result.output


def test_wrong_catalogue_ends_the_run_before_it_begins(fake_night, tmp_path):
    """One error, not one for every detector of every visit; nothing is written."""
    fake_night("good.fits")
    catalogue = tmp_path / "positions.csv"
    catalogue.write_text("a,b\n1,2\n")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path / "out", "--positions", catalogue)
    assert result.exit_code == 1 and "got columns a, b, wanted ra, dec too" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("cupy") is not None, reason="needs an installation without CuPy")
@pytest.mark.parametrize("executor", ["ray", "local"])
def test_gpu_without_cupy_ends_the_run_before_it_begins(executor, fake_night, tmp_path):
    """Who asks for a card that cannot be used is told once, and how to mend it."""
    fake_night("good.fits")
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path / "out", "--device", "gpu", "--executor", executor)
    assert result.exit_code == 1 and "pip install 'nightstream[cuda13-wheels]'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("complete", "status"), [(True, 0), (False, 1)])
def test_demo_tells_failures_by_its_status(complete, status, monkeypatch, tmp_path):
    """A demonstration that lost a detector is no success."""
    result = SimpleNamespace(run=SimpleNamespace(is_complete=complete))
    monkeypatch.setattr("nightstream.demo.run_demo", lambda output: result)
    assert invoke("demo", "-o", tmp_path).exit_code == status


def test_missing_module_names_the_extra_that_brings_it(capsys):
    """Whoever asks for a picture without matplotlib is told what to install."""
    with pytest.raises(typer.Exit), errors_end_the_command():
        raise ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure")
    assert "pip install 'nightstream[plot]'" in capsys.readouterr().err


def test_unreadable_raw_file_fails_the_run_but_not_the_visits(fake_night, tmp_path):
    """A file whose header says nothing is listed, everything else is processed, and the status is 1."""
    fake_night("good.fits", [FileError("no such file", path="lost.fits")])
    result = invoke("run", "raws", "-c", "efosc2", "-o", tmp_path)
    assert result.exit_code == 1 and "lost.fits" in result.output
    assert len(list(tmp_path.rglob("visit.h5"))) == 2
