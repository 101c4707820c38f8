"""Whole alerts as they leave: every reader of the standards takes them, at any version, and they hold what was promised."""

from __future__ import annotations

import io
import itertools

import fastavro
import numpy as np
import pytest
from alert_records import KnownSchemas
from astropy.io import fits
from catalogue_night import MJD, STEP_DEG, Night, make_visit, true_sky

from nightstream.engine.config import AssociateConfig, EngineConfig
from nightstream.io.alerts.avro_schema import VERSIONS, alert_schema
from nightstream.io.alerts.cutout_fits import CutoutFiles
from nightstream.io.alerts.files import decode_body, read_alert_file, read_body, wire_message
from nightstream.io.apdb import DIA_OBJECT
from nightstream.scheduler import alert_batch
from nightstream.scheduler.alert_batch import alert_order
from nightstream.simulate import catalogue

CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")
HISTORIES = ("prvDiaSources", "prvDiaForcedSources")
ASTEROIDS = (901, 902)
VISITS = (1, 2, 3)
COLUMNS = {column.apdb: column.name for column in DIA_OBJECT.columns}


def place_of(asteroid, visit):
    """Position (deg) of an asteroid: a few arcsec farther each visit."""
    return 150.0 + 0.6 * STEP_DEG * (asteroid - 901) + visit * 3e-4, (0.45 - 0.9 * (asteroid - 901)) * STEP_DEG


def predictions():
    """Where both asteroids are in every visit."""
    rows = list(itertools.product(ASTEROIDS, VISITS))
    ra, dec = np.transpose([place_of(*row) for row in rows])
    ids, visits = np.transpose(rows)
    return {"ss_object_id": ids, "visit": visits, "designation": np.array([f"SIM {i}" for i in ids]), "ra": ra, "dec": dec}


@pytest.fixture
def make_night(tmp_path):
    """Makes nights, each in a folder of its own; closes them."""
    nights = []

    def make(**publisher):
        folder = tmp_path / f"night-{len(nights)}"
        folder.mkdir()
        nights.append(Night(folder, **publisher))
        return nights[-1]

    yield make
    for night in nights:
        night.database.close()


@pytest.fixture
def busy_night(make_night):
    """Returns a night after three visits of fixed sources and two asteroids."""

    def make(**publisher):
        night, (ra, dec, flux) = make_night(ephemerides=predictions(), **publisher), true_sky()
        for visit in VISITS:
            moving = np.transpose([place_of(asteroid, visit) for asteroid in ASTEROIDS])
            places = (np.append(fixed, moved) for fixed, moved in zip((ra, dec), moving, strict=True))
            night.detect(make_visit(visit, MJD + visit), *places, np.append(flux, [9500.0] * len(ASTEROIDS)))
        return night

    return make


def bodies(night):
    """The body of every alert, read at the place that the database tells, with its number."""
    for name in {alert.name for alert in night.database.unsent_files()}:
        rows = night.database.unsent_alerts(name)
        for number, *place in zip(*(rows[column].tolist() for column in ("dia_source_id", "offset", "length")), strict=True):
            yield number, read_body(night.folder / "spool" / name, *place)


def rubins_schema(version):
    """Return Rubin's own schema object, or skip."""
    package = pytest.importorskip("lsst.alert.packet")
    major, minor = version.split(".")
    name = f"lsst.v{major}_{minor}.alert"
    return package.Schema.from_file(f"{package.get_schema_path(major, minor)}/{name}.avsc")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reader_takes_every_alert(busy_night, version):
    """fastavro, Rubin's package and Confluent's deserializer find the same valid records, in any version of the schema."""
    avro = pytest.importorskip("confluent_kafka.schema_registry.avro")
    ours, rubins, deserializer = alert_schema(version), rubins_schema(version), avro.AvroDeserializer(KnownSchemas())
    packed = dict(bodies(busy_night(schema_version=version)))
    assert len(packed) > 30
    for number, body in packed.items():
        alert = decode_body(body, version)
        assert alert["diaSourceId"] == number
        assert fastavro.validation.validate(alert, fastavro.parse_schema(ours))
        assert rubins.validate(alert) and rubins.serialize(alert) == body and rubins.deserialize(body) == alert
        assert deserializer(wire_message(body, version)) == alert


def test_brokers_get_what_they_count_on(busy_night):
    """Three cutouts, no null in lists, NULL instead of the number 0, and the namespace by which brokers know Rubin's alerts."""
    for version in VERSIONS:
        assert alert_schema(version)["namespace"] == f"lsst.v{version.replace('.', '_')}"
    for number, alert in busy_night().alerts().items():
        source = alert["diaSource"]
        assert number > 0 and source["diaSourceId"] == number
        assert all(alert[name].startswith(b"SIMPLE  =") for name in CUTOUTS)
        assert 0 not in (source["diaObjectId"], source["ssObjectId"], source["parentDiaSourceId"])
        assert (source["diaObjectId"] is None) == (alert["diaObject"] is None) != (alert["ssSource"] is None)
        assert alert["diaObject"] is None or alert["prvDiaForcedSources"] != []


def test_a_known_asteroid_has_its_history_and_no_object(busy_night):
    """Its alert has the SSSource of this visit, no DIAObject, and the sources of the visits before, wherever they were."""
    night = busy_night()
    moving = [alert for alert in night.alerts().values() if alert["ssSource"]]
    assert len(moving) == len(ASTEROIDS) * len(VISITS)
    for alert in moving:
        source, known = alert["diaSource"], alert["ssSource"]
        asteroid, visit = source["ssObjectId"], source["visit"]
        assert asteroid in ASTEROIDS and known["ssObjectId"] == asteroid and known["diaSourceId"] == alert["diaSourceId"]
        assert known["designation"] == f"SIM {asteroid}" and known["ephOffset"] < 0.5
        assert alert["diaObject"] is alert["prvDiaForcedSources"] is source["diaObjectId"] is None
        before = alert["prvDiaSources"] or []
        assert [row["visit"] for row in before] == list(range(1, visit))
        assert all(row["ssObjectId"] == asteroid and row["diaObjectId"] is None for row in before)
    ids = [alert["diaSourceId"] for alert in moving]
    assert len(night.database.solar_system_history(ASTEROIDS, 0.0)["ra"]) == len(ids) == len(set(ids))


def test_the_object_in_an_alert_is_that_of_the_database(busy_night):
    """Every column, to the last bit; it is valid from the visit on, and the version before it until then."""
    night = busy_night()
    last = [a for a in night.alerts().values() if a["diaObject"] and a["diaSource"]["visit"] == VISITS[-1]]
    rows = night.database.dia_objects([alert["diaObject"]["diaObjectId"] for alert in last])
    place = {number: row for row, number in enumerate(rows["dia_object_id"].tolist())}
    for alert in last:
        row = place[alert["diaObject"]["diaObjectId"]]
        for apdb, value in alert["diaObject"].items():
            stored = rows[COLUMNS[apdb]][row].item()
            assert stored == value or (value is None and np.isnan(stored)), apdb
    versions = night.database.object_versions(last[0]["diaObject"]["diaObjectId"])
    np.testing.assert_array_equal(versions["validity_start_mjd_tai"], MJD + np.array(VISITS))
    np.testing.assert_array_equal(versions["validity_end_mjd_tai"], [MJD + 2, MJD + 3, np.nan])


def test_new_objects_are_forced_on_the_visit_that_found_them(make_night):
    """The first alert has the flux at its own position on this visit, of the same source number as its object."""
    night = make_night()
    night.detect(make_visit(1), *true_sky())
    for number, alert in night.alerts().items():
        (forced,) = alert["prvDiaForcedSources"]
        assert (forced["visit"], forced["detector"]) == (1, alert["diaSource"]["detector"])
        assert forced["diaObjectId"] == number and forced["ra"] == alert["diaSource"]["ra"]
        assert abs(forced["psfFlux"]) < 5 * forced["psfFluxErr"] and forced["scienceFluxErr"] > 0  # the images are blank


def test_what_is_older_than_a_year_is_forgotten(make_night):
    """History holds 12 months, and an object not detected for so long is forced no more; when it comes back it is the same."""
    night, (ra, dec, flux) = make_night(), true_sky()
    n = len(ra)
    for number, (day, n_bright) in enumerate(((0.0, n), (300.0, n), (500.0, 1), (670.0, 1), (720.0, n)), 1):
        night.detect(make_visit(number, MJD + day), ra[:n_bright], dec[:n_bright], flux[:n_bright])
    last = [alert for alert in night.alerts().values() if alert["diaSource"]["visit"] == 5]
    histories = [[[row["visit"] for row in alert[name] or []] for name in HISTORIES] for alert in last]
    assert sorted(histories) == sorted([[[3, 4], [3, 4, 5]]] + (n - 1) * [[[], [3, 5]]])
    ids = np.unique([alert["diaObject"]["diaObjectId"] for alert in night.alerts().values()])
    forced = night.database.history(ids, 0.0)[1]
    # in the fourth visit all but one had not been seen for more than a year
    assert len(ids) == n and np.bincount(forced["visit"]).tolist() == [0, n, n, n, 1, n]


def test_sources_at_edges_and_corners_have_whole_alerts(make_night):
    """Stamps that hang over the edge are as large as others; what is off the image is NaN, and said to be no data."""
    night, visit = make_night(), make_visit(1, n_detectors=1)
    x, y = np.array([0.6, 254.4, 0.6, 254.4, 128.0, 0.6]), np.array([0.6, 0.6, 254.4, 254.4, 0.6, 128.0])
    night.detect(visit, *visit.wcs(0).sky_from_pixel(x, y), np.full(6, 5000.0))
    alerts = night.alerts()
    assert len(alerts) >= 4  # errors may carry some off the image
    for alert, name in itertools.product(alerts.values(), CUTOUTS):
        with fits.open(io.BytesIO(alert[name])) as hdus:
            planes = [hdu.data for hdu in hdus]
            assert [plane.shape for plane in planes[:3]] == [(30, 30)] * 3
            off = np.isnan(planes[0])
            no_data = (planes[2] >> hdus["MASK"].header["MP_NO_DATA"]) & 1
            assert 0.4 < off.mean() < 0.8 and np.array_equal(off, np.isnan(planes[1])) and np.array_equal(off, no_data)
            assert planes[3].sum() == pytest.approx(1.0, abs=1e-5)


def test_stamps_are_as_large_as_the_footprints(make_night, monkeypatch):
    """From 30 to 102 pixels a side, each with the position angle of its pixels."""
    sizes = np.array([1, 30, 31, 64, 102, 500], np.int32)
    plain = catalogue.source_table
    monkeypatch.setattr(catalogue, "source_table", lambda *args: plain(*args) | {"bbox_size": sizes})
    night, visit = make_night(), make_visit(1, n_detectors=1)
    night.detect(visit, *visit.wcs(0).sky_from_pixel(40.0 * np.arange(1, 7), np.full(6, 128.0)), np.full(6, 5000.0))
    alerts = [alert for _, alert in sorted(night.alerts().items())]
    assert [alert["diaSource"]["bboxSize"] for alert in alerts] == sizes.tolist()
    for alert, side in zip(alerts, [30, 30, 31, 64, 102, 102], strict=True):
        for name in CUTOUTS:
            with fits.open(io.BytesIO(alert[name])) as hdus:
                assert hdus[0].shape == (side, side) and hdus[0].header["ROTPA"] % 360 == pytest.approx(0.0, abs=1e-3)


def test_the_surest_alerts_come_first():
    """By reliability, then |S/N|, then number; those whose reliability is not known come last."""
    table = {
        "dia_source_id": np.array([1, 2, 3, 4, 5, 6]),
        "reliability": np.array([0.5, np.nan, 0.9, 0.5, np.nan, 0.5]),
        "snr": np.array([-9.0, 99.0, 5.0, 8.0, -100.0, 9.0]),
    }
    assert table["dia_source_id"][alert_order(table)].tolist() == [3, 1, 6, 4, 5, 2]
    del table["reliability"]
    assert table["dia_source_id"][alert_order(table)].tolist() == [5, 2, 1, 6, 4, 3]


def test_many_alerts_are_packed_a_few_at_a_time(make_night, monkeypatch):
    """However many a visit has, the stamps of only some are in memory as FITS; none is lost, and the order holds."""
    asked, plain = [], CutoutFiles.files
    monkeypatch.setattr(alert_batch, "PACKED_AT_ONCE", 7)
    monkeypatch.setattr(CutoutFiles, "files", lambda self, kind, rows: asked.append(len(rows)) or plain(self, kind, rows))
    night = make_night()
    done = night.detect(make_visit(1), *true_sky(60))
    (path,) = (night.folder / "spool").glob("*.avro")
    snr = [abs(alert["diaSource"]["snr"]) for alert in read_alert_file(path)]
    assert max(asked) <= 7 and sum(asked) == 3 * done.n_alerts == 3 * len(snr) and len(snr) > 40
    assert snr == sorted(snr, reverse=True)


def test_a_detector_full_of_new_objects_is_left_out(make_night):
    """It is told, and stays open; the other detector has its alerts."""
    night = make_night(engine=EngineConfig(associate=AssociateConfig(max_new_objects_per_detector=5)))
    visit = make_visit(1)
    ra = np.append(150.0 + np.linspace(-0.3, 0.3, 9) * STEP_DEG, 150.0 + STEP_DEG)
    done = night.detect(visit, ra, np.zeros(10), np.full(10, 5000.0))
    assert done.detectors == (1,) and done.n_alerts == 1 and night.database.published_detectors(1) == {1}
    assert [problem.detector for problem in done.problems] == [0] and "9 new DIAObjects" in str(done.problems[0])
