"""The archive: an alert that was made is found by source and by object, printed, drawn and written as it was."""

import io
from xml.etree import ElementTree

import numpy as np
import prompt_tables
import pytest
from alert_records import fastavro_bytes
from alert_samples import MJD, encodable, fits_stamp, sample_alert
from astropy.nddata import CCDData
from rubin_alerts import rubin_alerts
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.errors import FileError, InputError
from nightstream.io.alerts.archive import (
    alert_tables,
    find_alerts,
    find_in_file,
    light_curve,
    read_stamp,
    read_stamps,
    write_stamps,
)
from nightstream.io.alerts.files import write_alert_file
from nightstream.io.alerts.filters import load_filters, run_filters
from nightstream.io.database.prompt_database import VisitBatch, open_database

VISIT, OBJECT = 2026010100123, 900
READOUT = MJD + 1e-4


def packets():
    """Three alerts of one visit: two of the same object, one of an asteroid."""
    first, second, moving = sample_alert(1), sample_alert(2), sample_alert(3, moving=True)
    for packet, number in ((first, 11), (second, 12), (moving, 13)):
        packet["diaSourceId"] = packet["diaSource"]["diaSourceId"] = number
    moving["ssSource"]["diaSourceId"] = 13
    return [encodable(packet) for packet in (first, second, moving)]


@pytest.fixture
def archive(tmp_path):
    """A folder with prompt.duckdb and spool/: the alerts of one visit; the first was sent 42 s after readout."""
    alerts, ids = packets(), [11, 12, 13]
    places = write_alert_file(tmp_path / "spool" / "v.avro", fastavro_bytes(alerts, "alert"), "11.1", ids=ids)
    objects = [OBJECT, OBJECT, 0]
    rows = prompt_tables.alerts(ids, objects, VISIT, file="v.avro", mjd=READOUT) | places._asdict()
    rows["ss_object_id"] = np.array([0, 0, 42])
    batch = VisitBatch(
        visit=VISIT, detector_visits=prompt_tables.detector_visits(VISIT), dia_objects=prompt_tables.objects([OBJECT]),
        dia_sources=prompt_tables.sources(ids, objects, VISIT), alerts=rows, alert_file="v.avro",
    )  # fmt: skip
    with open_database(tmp_path / "prompt.duckdb") as database:
        database.write(batch)
        database.mark_sent(np.array([11]), READOUT + 42 / 86400)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_an_alert_is_found_by_its_number(archive):
    """The packet is the one that was written, with its latency."""
    with open_database(archive / "prompt.duckdb") as database:
        (alert,) = find_alerts(database, 11, archive / "spool")
    assert alert.packet["cutoutScience"] == packets()[0]["cutoutScience"]
    assert alert.packet["diaSource"]["psfFlux"] == 9000.0
    assert alert.latency_s == pytest.approx(42.0, abs=1e-3)
    assert (alert.path.name, alert.schema_version) == ("v.avro", "11.1")


def test_alerts_are_found_by_their_object(archive):
    """All alerts of the object, or Solar System object, come; one that was not sent has no latency."""
    with open_database(archive / "prompt.duckdb") as database:
        found = find_alerts(database, OBJECT, archive / "spool", of_object=True)
        (moving,) = find_alerts(database, 42, archive / "spool", of_object=True)
    assert moving.packet["diaSourceId"] == 13 and moving.packet["ssSource"]["ssObjectId"] == 42
    assert [alert.packet["diaSourceId"] for alert in found] == [11, 12]
    assert np.isnan(found[1].latency_s)


def test_alerts_are_found_in_a_file(archive):
    """Without a database a file of alerts is searched."""
    path = archive / "spool" / "v.avro"
    assert [alert.packet["diaSourceId"] for alert in find_in_file(path, 13)] == [13]
    assert len(find_in_file(path, OBJECT, of_object=True)) == 2
    assert [alert.packet["diaSourceId"] for alert in find_in_file(path, 42, of_object=True)] == [13]
    with pytest.raises(InputError, match=r"no alert of source 99 \[file .*v.avro\]"):
        find_in_file(path, 99)


def test_an_unknown_number_is_a_clear_error(archive):
    """The message says what was looked for."""
    with open_database(archive / "prompt.duckdb") as database:
        with pytest.raises(InputError, match="no alert of source 99"):
            find_alerts(database, 99, archive / "spool")
        with pytest.raises(InputError, match="no alert of object 11"):
            find_alerts(database, 11, archive / "spool", of_object=True)


def test_a_missing_or_damaged_file_is_a_clear_error(archive):
    """The message names the file and the alert that should be in it."""
    path = archive / "spool" / "v.avro"
    with open_database(archive / "prompt.duckdb") as database:
        with pytest.raises(
            FileError, match="alert of source 11 should be in this file, which is not there .*visit 2026010100123.*v.avro"
        ):
            find_alerts(database, 11, archive / "elsewhere")
        path.write_bytes(path.read_bytes()[:-10000])
        with pytest.raises(FileError, match="v.avro"):
            find_alerts(database, 13, archive / "spool")


def test_the_command_prints_an_alert(archive):
    """What, where, when, how bright, how late."""
    result = run("alert", 11, "--database", archive / "prompt.duckdb")
    assert result.exit_code == 0, result.output
    texts = ["alert 11", "object", "900, 6 sources", "150.100000°, -2.200000°", "2026-01-01T05:59:23.000 UTC", "v.avro"]
    texts += ["9.000 ± 0.100 µJy (21.51 mag)", "earlier sources", "5, the oldest of 13.00 d", "0.970", "42.0 s after readout"]
    for text in texts:
        assert text in result.output


def test_the_command_writes_stamps_picture_and_event(archive):
    """FITS as in the packet, a PNG, and a VOEvent that parses, for each alert of an object."""
    output = archive / "out"
    result = run("alert", OBJECT, "--object", "--database", archive / "prompt.duckdb", "-o", output, "--voevent")
    assert result.exit_code == 0, result.output
    assert "2 alerts of the object" in result.output
    names = [f"{number}_{kind}.fits" for number in (11, 12) for kind in ("science", "template", "difference")]
    assert {path.name for path in output.iterdir()} == {*names, "11.png", "11.xml", "12.png", "12.xml"}
    assert (output / "11_template.fits").read_bytes() == packets()[0]["cutoutTemplate"]
    assert (output / "12.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(output / "11.xml").getroot().get("ivorn").endswith("#11")


def test_the_command_prints_an_event(archive):
    """Without a folder the VOEvent goes to the terminal, alone."""
    result = run("alert", 13, "--database", archive / "prompt.duckdb", "--voevent")
    assert ElementTree.fromstring(result.output.encode()).find("Why/Inference/Name").text == "2001 SB97"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((99, "--database", "prompt.duckdb"), "no alert of source 99"),
        ((11, "--database", "prompt.duckdb", "--spool", "nowhere"), "which is not there"),
        ((11, "--database", "missing.duckdb"), "missing.duckdb"),
    ],
)
def test_the_command_ends_with_one_line_of_error(archive, monkeypatch, arguments, text):
    """No traceback: what was wrong, in one line, and a status that is not 0."""
    monkeypatch.chdir(archive)
    result = run("alert", *arguments)
    assert result.exit_code in (1, 2)
    assert text in result.output
    assert "Traceback" not in result.output


def test_filters_run_on_a_file_of_alerts(archive, tmp_path):
    """`nightstream filter` says who would get what; a bad filter is named and ends it with status 1."""
    folder = tmp_path / "filters"
    folder.mkdir()
    (folder / "anna.sql").write_text("SELECT * FROM alert WHERE designation = '2001 SB97'")
    (folder / "bert.sql").write_text("SELECT * FROM alert WHERE nDiaSources = 6 ORDER BY diaSourceId")
    assert "2 filters" in run("filter", folder).output
    result = run("filter", folder, "--alerts", archive / "spool" / "v.avro")
    assert result.exit_code == 0, result.output
    assert "11, 12" in result.output and "13" in result.output
    (folder / "carl.sql").write_text("COPY alert TO 'x.csv'")
    result = run("filter", folder)
    assert result.exit_code == 1
    assert "filter of carl, file carl.sql: only a SELECT is allowed, got COPY" in result.output


def test_alerts_as_tables_keep_nulls(archive, tmp_path):
    """Null in a packet is masked; each object comes once; zero stays zero."""
    tables = alert_tables(packets())
    assert tables["dia_sources"]["dia_object_id"].mask.tolist() == [False, False, True]
    assert tables["dia_sources"]["trail_length"].mask.all()  # NaN
    assert tables["dia_objects"]["dia_object_id"].tolist() == [OBJECT]
    assert tables["ss_sources"]["designation"].tolist() == ["2001 SB97"]
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "anna.sql").write_text("SELECT * FROM alert WHERE trailLength IS NULL AND diaObjectId IS NULL")
    assert run_filters(load_filters(tmp_path / "filters"), tables)["anna"].ids.tolist() == [13]
    assert alert_tables([]) == {"dia_sources": {}, "dia_objects": {}, "ss_sources": {}}


def test_a_stamp_has_its_planes():
    """Image, variance, mask, PSF, and the source's pixel, from 30 to 102 pixels."""
    for size in (30, 31, 102):
        stamp = read_stamp(fits_stamp(np.arange(size**2, dtype=float).reshape(size, size), 10.0, 20.0))
        assert stamp.image[1, 0] == size
        assert stamp.variance.shape == stamp.mask.shape == (size, size)
        assert stamp.psf.shape == (25, 25)
        assert (stamp.x, stamp.y) == (size // 2, size // 2)


def test_no_fits_is_a_clear_error():
    """A cutout that is none is named as such."""
    with pytest.raises(InputError, match="not FITS"):
        read_stamp(b"GIF89a")


def test_written_stamps_open_in_astropy(tmp_path):
    """CCDData reads what was written: nJy, with mask and WCS."""
    packet = sample_alert()
    for path, plane in zip(write_stamps(packet, tmp_path), read_stamps(packet).values(), strict=True):
        data = CCDData.read(path)
        np.testing.assert_array_equal(data.data, plane.image)
        assert str(data.unit) == "nJy"
        assert data.wcs.pixel_to_world(15, 15).ra.deg == pytest.approx(150.1)


def test_the_light_curve_is_all_fluxes_in_time():
    """History, forced fluxes and the source itself, sorted; a flux nobody measured is NaN and keeps its error."""
    curve = light_curve(sample_alert())
    assert len(curve["flux"]) == 5 + 11 + 1
    assert (np.diff(curve["mjd_tai"]) >= 0).all()
    assert curve["is_current"].tolist() == [False] * 16 + [True]
    assert curve["flux"][-1] == 9000.0
    missing = np.isnan(curve["flux"])
    assert missing.sum() == 1
    assert curve["is_forced"][missing].all() and curve["flux_err"][missing].tolist() == [100.0]


@pytest.mark.real
def test_rubins_alerts_can_be_read_and_printed(tmp_path):
    """All 25 real alerts: found in a file by number, printed, their stamps read; the source's pixel is the brightest."""
    alerts = rubin_alerts()
    path = tmp_path / "rubin.avro"
    write_alert_file(path, fastavro_bytes(alerts, "alert", "10.0"), "10.0", ids=[alert["diaSourceId"] for alert in alerts])
    for alert in alerts:
        result = run("alert", alert["diaSourceId"], "--alerts", path)
        assert result.exit_code == 0, result.output
    bright = max(alerts, key=lambda alert: alert["diaSource"]["snr"])
    stamp = read_stamps(bright)["difference"]
    y, x = np.unravel_index(np.argmax(stamp.image), stamp.image.shape)
    # the PSF is 5 pixels wide: its peak lies within a pixel of the centroid
    assert np.hypot(x - stamp.x, y - stamp.y) < 1.0
    assert stamp.mask is None and stamp.variance.shape == (30, 30)
    assert io.BytesIO(bright["cutoutScience"]).read(6) == b"SIMPLE"
