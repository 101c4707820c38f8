"""Known Solar System objects: the first claim on sources, motion by rates, and what an SSSource row says."""

import numpy as np
import pytest
from sky_tables import MJD, make_objects, make_predictions, make_sources, offset_sky, reordered

from nightstream.engine.associate import associate
from nightstream.engine.config import AssociateConfig
from nightstream.engine.solar_system import predictions_for
from nightstream.errors import InputError
from nightstream.io.apdb import SS_SOURCE
from nightstream.io.schema import to_structured
from nightstream.kernels.sky_frames import earth_position, heliocentric_earth, unit_vectors

CONFIG = AssociateConfig()
HOUR = 1 / 24


def test_solar_system_objects_have_the_first_claim():
    """A source at a predicted place is the asteroid, even right on a DIAObject; the next source has the DIAObject."""
    sources = make_sources([0.0, 30.0])
    found = associate(sources, make_objects([0.0, 30.0]), CONFIG, ephemerides=make_predictions([0.2]))
    assert found.ss_object_id.tolist() == [9001, 0]
    assert found.dia_object_id.tolist() == [0, 2]
    assert not found.is_new.any() and found.is_stored.all()
    np.testing.assert_allclose(found.separation_arcsec, [0.2, 0.0], atol=1e-6)


def test_predictions_reach_one_arcsec():
    """0.95 arcsec off is the object; 1.05 is not."""
    for apart, number in ((0.95, 9001), (1.05, 0)):
        found = associate(make_sources([apart]), {}, CONFIG, ephemerides=make_predictions([0.0], error=0.3))
        assert found.ss_object_id.tolist() == [number]


def test_a_source_is_one_object_and_an_object_one_source():
    """Two sources near two predictions, and a third source left: each prediction is used once, the nearest way round."""
    sources = make_sources([0.0, 0.8, 0.4], error=0.1)
    found = associate(sources, {}, CONFIG, ephemerides=make_predictions([0.75, 0.05]))
    assert found.ss_object_id.tolist() == [9002, 9001, 0]
    assert found.is_new.tolist() == [False, False, True]


def test_predictions_move_by_their_rates():
    """An hour after the prediction the object is looked for where its motion has taken it, and not where it was."""
    rate = 0.5  # deg/day: 75 arcsec an hour
    sources = make_sources([3600 * rate * HOUR, 0.0], mjd=MJD + HOUR)
    found = associate(sources, {}, CONFIG, ephemerides=make_predictions([0.0], rates=(rate, 0.0), mjd=MJD))
    assert found.ss_object_id.tolist() == [9001, 0]


def test_each_source_is_compared_at_its_own_time():
    """A fast object on a detector read 10 s later is 3.5 arcsec further on, and still found."""
    delay, rate = 10 / 86400, 8.4  # days; deg/day, 0.35 arcsec/s
    sources = make_sources([0.0, 20.0, 40.0 + 3.5], detector=[1, 1, 2])
    sources["midpoint_mjd_tai"][2] += delay
    found = associate(sources, {}, CONFIG, ephemerides=make_predictions([40.0], rates=(rate, 0.0), mjd=MJD))
    assert found.ss_object_id.tolist() == [0, 0, 9001]


def test_an_asteroid_on_two_detectors_is_seen_once():
    """Of two measurements on overlapping detectors one is the object, the other dropped; the same if the first is stored."""
    both = make_sources([0.0, 0.1], detector=[1, 2], snr=[9.0, 12.0])
    found = associate(both, {}, CONFIG, ephemerides=make_predictions([0.0]))
    assert found.ss_object_id.tolist() == [0, 9001] and found.is_duplicate.tolist() == [True, False]
    later = associate(reordered(both, [0]), {}, CONFIG, ephemerides=make_predictions([0.0]), claimed=[9001])
    assert later.is_duplicate.all() and not later.is_stored.any() and len(later.ss_sources["dia_source_id"]) == 0


def test_order_does_not_matter():
    """Many sources and predictions in other orders: the same pairs, the same rows."""
    rng = np.random.default_rng(8)
    sources = make_sources(*rng.uniform(0, 10, (2, 80)), error=0.2)
    predictions = make_predictions(*rng.uniform(0, 10, (2, 40)), rates=(0.2, 0.1))
    one, two = rng.permutation(80), rng.permutation(40)
    found = associate(sources, {}, CONFIG, ephemerides=predictions)
    again = associate(reordered(sources, one), {}, CONFIG, ephemerides=reordered(predictions, two))
    np.testing.assert_array_equal(found.ss_object_id[one], again.ss_object_id)
    for name, column in found.ss_sources.items():
        np.testing.assert_array_equal(column, again.ss_sources[name], err_msg=name)
    assert len(found.ss_sources["ss_object_id"]) > 20


def test_rows_have_every_column_of_the_apdb():
    """SSSource rows hold all 39 columns and fit their types; without a match there are none, of all columns."""
    for predictions, n in ((make_predictions([0.0]), 1), (make_predictions([50.0]), 0), (None, 0)):
        rows = associate(make_sources([0.0]), {}, CONFIG, ephemerides=predictions).ss_sources
        assert set(rows) == set(SS_SOURCE.by_name)
        assert len(to_structured(rows, SS_SOURCE)) == n


def row_of(sources, predictions):
    rows = associate(sources, {}, CONFIG, ephemerides=predictions).ss_sources
    assert len(rows["dia_source_id"]) == 1
    return {name: column[0] for name, column in rows.items()}


def test_places_in_ecliptic_and_galactic_axes():
    """The galactic centre is at 0, 0 within 0.001 deg, and 5.6 degrees south of the ecliptic."""
    ra, dec = 266.40499, -28.93617
    row = row_of(make_sources([0.0], ra=ra, dec=dec), make_predictions([0.0], ra=ra, dec=dec))
    assert abs((row["gal_lon"] + 180) % 360 - 180) < 1e-3 and abs(row["gal_lat"]) < 1e-3
    assert row["ecl_lambda"] == pytest.approx(266.8396, abs=1e-3) and row["ecl_beta"] == pytest.approx(-5.5367, abs=1e-3)


def test_offsets_along_and_across_the_track():
    """Moving to the north-east, a source 0.3 arcsec east of the prediction is as far ahead as it is off to one side."""
    row = row_of(make_sources([0.3]), make_predictions([0.0], rates=(0.1, 0.1)))
    assert row["eph_offset_ra"] == pytest.approx(0.3, abs=1e-6) and row["eph_offset_dec"] == pytest.approx(0, abs=1e-6)
    assert row["eph_offset"] == pytest.approx(0.3, abs=1e-6)
    assert row["eph_offset_along_track"] == pytest.approx(0.3 / np.sqrt(2), abs=1e-6)
    assert row["eph_offset_cross_track"] == pytest.approx(-0.3 / np.sqrt(2), abs=1e-6)


def test_predicted_values_are_those_at_the_sources_time():
    """The prediction in the row has been moved; its rate in ra is times cos(dec), and the whole rate is their norm."""
    predictions = make_predictions([0.0], rates=(0.3, 0.4), mjd=MJD)
    at_ra, at_dec = offset_sky(150.0, -30.0, [0.3 * HOUR * 3600], [0.4 * HOUR * 3600])
    row = row_of(make_sources([0.3 * HOUR * 3600], [0.4 * HOUR * 3600], mjd=MJD + HOUR), predictions)
    assert row["eph_ra"] == pytest.approx(at_ra[0], abs=1e-8) and row["eph_dec"] == pytest.approx(at_dec[0], abs=1e-8)
    assert (row["eph_rate_ra"], row["eph_rate_dec"], row["eph_rate"]) == pytest.approx((0.3, 0.4, 0.5), rel=1e-4)
    assert row["eph_vmag"] == 20.0 and row["designation"] == "2026 AA9001"


def test_what_the_predictions_lack_is_nan():
    """With positions alone, motion, magnitude and distances are NaN; the elongation still follows from the date."""
    bare = {name: make_predictions([0.0])[name] for name in ("ss_object_id", "ra", "dec")}
    row = row_of(make_sources([0.1]), bare)
    for name in ("eph_rate", "eph_offset_along_track", "eph_vmag", "topo_range", "helio_x", "topo_vtot", "phase_angle"):
        assert np.isnan(row[name]), name
    assert row["designation"] == "" and row["eph_offset"] == pytest.approx(0.1, abs=1e-6)
    sun = -heliocentric_earth(MJD)
    cosine = unit_vectors(150.0, -30.0) @ sun / np.linalg.norm(sun)
    assert row["elongation"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)


def test_distances_follow_from_one():
    """At opposition 1 AU away: the other side of the triangle is 1 AU longer, and the phase angle is 0."""
    earth = heliocentric_earth(MJD)
    ra, dec = np.degrees(np.arctan2(earth[1], earth[0])) % 360, np.degrees(np.arcsin(earth[2] / np.linalg.norm(earth)))
    predictions = make_predictions([0.0], ra=ra, dec=dec) | {"topo_range": np.ones(1)}
    row = row_of(make_sources([0.0], ra=ra, dec=dec), predictions)
    assert row["helio_range"] == pytest.approx(1 + np.linalg.norm(earth), abs=1e-6)
    assert row["phase_angle"] < 1e-3 and row["elongation"] == pytest.approx(180, abs=1e-3)
    assert [row[f"topo_{axis}"] for axis in "xyz"] == pytest.approx(unit_vectors(ra, dec).tolist(), abs=1e-9)


def test_given_vectors_are_kept():
    """Vectors of the prediction table are passed on; ranges, speeds and angles are made of them."""
    vectors = {"helio_x": 2.0, "helio_y": 0.0, "helio_z": 0.0, "topo_x": 1.0, "topo_y": 1.0, "topo_z": 0.0}
    speeds = {"helio_vx": 3.0, "helio_vy": 4.0, "helio_vz": 0.0, "topo_vx": 10.0, "topo_vy": 0.0, "topo_vz": 0.0}
    given = {name: np.array([value]) for name, value in (vectors | speeds).items()}
    row = row_of(make_sources([0.0]), make_predictions([0.0]) | given)
    assert all(row[name] == value for name, value in (vectors | speeds).items())
    assert row["helio_range"] == 2.0 and row["helio_vtot"] == 5.0 and row["helio_range_rate"] == 3.0
    assert row["topo_range_rate"] == pytest.approx(10 / np.sqrt(2)) and row["phase_angle"] == pytest.approx(45.0)


def test_rank_counts_nearer_sources():
    """A matched source that is not the nearest to its prediction has rank 2: the nearer one was another object's."""
    sources = make_sources([0.0, 0.5], error=0.1)
    predictions = make_predictions([0.0, 0.2], error=[0.01, 0.3])
    rows = associate(sources, {}, CONFIG, ephemerides=predictions).ss_sources
    assert rows["ss_object_id"].tolist() == [9001, 9002]
    assert rows["dia_distance_rank"].tolist() == [1, 2]


def test_earth_is_where_it_was():
    """The barycentre is within 0.01 AU of the Sun, so both Earth positions agree to that."""
    assert np.linalg.norm(earth_position(MJD) - heliocentric_earth(MJD)) < 0.01


def night(**columns):
    n = len(columns["ss_object_id"])
    return {name: np.asarray(values) for name, values in columns.items()} | {"ra": np.arange(n) * 1.0, "dec": np.zeros(n)}


def test_rows_of_the_visit_are_taken():
    """With a column visit only that visit's rows count."""
    table = night(ss_object_id=[1, 2, 1], visit=[7, 7, 8])
    assert predictions_for(table, 8, 61000.0, CONFIG)["ra"].tolist() == [2.0]
    assert len(predictions_for(table, 9, 61000.0, CONFIG)["ra"]) == 0


def test_the_nearest_time_is_taken():
    """Without visits, of each object the row nearest in time, if rates may carry it so far."""
    table = night(ss_object_id=[1, 1, 1, 2], mjd=[61000.0, 61000.04, 61000.2, 61000.3])
    assert predictions_for(table, 8, 61000.05, CONFIG)["ra"].tolist() == [1.0]
    assert predictions_for(table, 8, 61000.25, CONFIG)["ra"].tolist() == [2.0, 3.0]
    assert predictions_for(table, 8, 61000.25, AssociateConfig(ephemeris_max_days=0.01))["ra"].tolist() == []


def test_two_predictions_of_one_object_are_refused():
    """An object cannot be at two places in one visit."""
    with pytest.raises(InputError, match="object 4 has 2 predictions"):
        predictions_for(night(ss_object_id=[4, 4], visit=[7, 7]), 7, 61000.0, CONFIG)


def test_predictions_without_a_place_match_nothing():
    """A prediction with a NaN position, and one whose rate is absurd, do no harm to the others."""
    predictions = make_predictions([0.0, 30.0, 60.0])
    predictions["ra"][0], predictions["dec_rate"][1] = np.nan, 1e6
    sources = make_sources([0.0, 30.0, 60.0])
    sources["midpoint_mjd_tai"] += [0.0, 0.0, 1e-5]
    found = associate(sources, {}, CONFIG, ephemerides=predictions)
    assert found.ss_object_id.tolist() == [0, 9002, 9003]


def test_predictions_of_other_visits_and_no_sources():
    """Predictions for another visit match nothing; predictions without sources are no error."""
    elsewhere = make_predictions([0.0]) | {"visit": np.array([78])}
    assert associate(make_sources([0.0]), {}, CONFIG, ephemerides=elsewhere).is_new.all()
    assert len(associate(make_sources([]), {}, CONFIG, ephemerides=make_predictions([0.0])).ss_object_id) == 0
