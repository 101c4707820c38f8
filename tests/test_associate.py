"""Association of DIASources with DIAObjects: who is matched, who is new, who is left out."""

import numpy as np
import pytest
from sky_tables import MJD, joined, make_objects, make_sources, reordered

from nightstream.engine.associate import MARGINAL_FLAGS, associate
from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import predicted_positions
from nightstream.errors import InputError
from nightstream.io.apdb import DIA_SOURCE

CONFIG = AssociateConfig()
SKIES = {"equator": (150.0, 0.0), "0 h": (0.0, -30.0), "north pole": (20.0, 90.0), "by the south pole": (310.0, -89.9999)}


def matched(sources, objects, **more):
    return associate(sources, objects, CONFIG, **more).dia_object_id.tolist()


@pytest.mark.parametrize("sky", SKIES)
def test_sources_find_their_objects_anywhere(sky):
    """Five objects, four seen again within the errors, one new source: on the equator, across 0 h and at the poles."""
    ra, dec = SKIES[sky]
    rng = np.random.default_rng(1)
    east, north = rng.uniform(-20, 20, (2, 6))
    objects = make_objects(east[:5], north[:5], ra=ra, dec=dec)
    sources = make_sources(east[1:] + rng.normal(0, 0.05, 5), north[1:] + rng.normal(0, 0.05, 5), ra=ra, dec=dec)
    found = associate(sources, objects, CONFIG)
    assert found.dia_object_id.tolist() == [2, 3, 4, 5, sources["dia_source_id"][4]]
    assert found.is_new.tolist() == [False] * 4 + [True]
    assert np.isnan(found.separation_arcsec[4]) and (found.separation_arcsec[:4] < 0.3).all()
    assert found.is_stored.all()


def test_new_objects_where_none_are_known():
    """With an empty table of objects every source makes an object of its own number."""
    sources = make_sources([0, 10, 20])
    for objects in ({}, make_objects([])):
        found = associate(sources, objects, CONFIG)
        assert found.is_new.all() and found.dia_object_id.tolist() == sources["dia_source_id"].tolist()


def test_no_sources():
    """A visit without sources gives columns of length 0."""
    found = associate(make_sources([]), make_objects([0.0]), CONFIG)
    assert len(found.dia_object_id) == len(found.is_new) == len(found.ss_sources["ecl_lambda"]) == 0


def test_positions_that_are_nan_match_nothing():
    """A source without a position is left out; an object without one is not matched."""
    sources, objects = make_sources([0.0, 10.0]), make_objects([0.0, 10.0])
    sources["ra"][0] = objects["dec"][1] = np.nan
    found = associate(sources, objects, CONFIG)
    assert found.dia_object_id.tolist() == [0, sources["dia_source_id"][1]]
    assert found.is_marginal.tolist() == [True, False] and not found.is_stored[0]


@pytest.mark.parametrize("error, is_matched", [(0.3, True), (0.03, False)])
def test_distance_is_weighed_by_the_errors(error, is_matched):
    """0.7 arcsec is 2 sigma for a poor position and 11 sigma for a good one: only the first is the same object."""
    sources = make_sources([0.7], error=error)
    assert (matched(sources, make_objects([0.0])) == [1]) == is_matched


def test_no_match_beyond_the_radius():
    """However large the errors, more than 1 arcsec is too far."""
    objects = make_objects([0.0])
    assert matched(make_sources([0.99], error=1.0), objects) == [1]
    assert matched(make_sources([1.01], error=1.0), objects) != [1]


def test_the_better_localised_object_is_preferred():
    """Between two objects equally far, the likelihood takes the one whose position is better known; but not when that
    position is too far off for it."""
    errors = np.array([0.3, 0.1])
    assert matched(make_sources([0.0]), make_objects([-0.15, 0.15], error=errors)) == [2]
    assert matched(make_sources([0.0]), make_objects([-0.45, 0.45], error=errors)) == [1]


def test_the_nearer_object_is_not_always_the_likelier():
    """A correlated error points at the object that lies along it."""
    sources = make_sources([0.0], error=0.3)
    sources["ra_dec_cov"] = 0.98 * sources["ra_err"] * sources["dec_err"]
    assert matched(sources, make_objects([0.25, 0.35], [-0.25, 0.35])) == [2]


def test_assignment_is_global():
    """Source 1 is nearest to object 2, which source 2 needs more: the pair of matches with the least sum is taken."""
    sources, objects = make_sources([0.45, 0.95], error=0.3), make_objects([0.0, 0.5])
    assert matched(sources, objects) == [1, 2]


def test_contention_makes_a_new_object():
    """Of two sources at one object the nearer has it; the other is a new object."""
    sources = make_sources([0.3, 0.05])
    found = associate(sources, make_objects([0.0]), CONFIG)
    assert found.dia_object_id.tolist() == [sources["dia_source_id"][0], 1]
    assert found.is_new.tolist() == [True, False]


def test_types_of_the_result():
    """Numbers are int64, claims boolean, separations float64, whatever integer types came in."""
    sources, objects = make_sources([0.0, 9.0]), make_objects([0.0])
    sources["dia_source_id"] = sources["dia_source_id"].astype(np.uint32)
    objects["dia_object_id"] = objects["dia_object_id"].astype(np.int32)
    found = associate(sources, objects, CONFIG)
    assert found.dia_object_id.dtype == found.ss_object_id.dtype == np.int64
    assert found.is_new.dtype == found.is_marginal.dtype == found.is_duplicate.dtype == bool
    assert found.separation_arcsec.dtype == np.float64


@pytest.mark.parametrize("broken", [np.nan, 0.0, -1.0, None])
def test_missing_errors_have_a_fallback(broken):
    """Errors that are missing stand for 0.2 arcsec each, and no covariance is believed: 0.6 arcsec apart still match."""
    sources, objects = (make([at], ra_dec_cov=1.0) for make, at in ((make_sources, 0.6), (make_objects, 0.0)))
    for table in (sources, objects):
        for name in ("ra_err", "dec_err"):
            table.pop(name) if broken is None else table[name].fill(broken)
    assert matched(sources, objects) == [1]


def test_masked_errors_are_missing():
    """A masked error is one nobody measured, whatever lies below the mask."""
    sources, objects = make_sources([0.6], error=0.01), make_objects([0.0])
    for name in ("ra_err", "dec_err"):
        sources[name] = np.ma.masked_array(sources[name], mask=True)
    assert matched(sources, objects) == [1]


def test_positions_have_a_floor():
    """Two positions said to be good to 1 mas still match when 0.2 arcsec apart, as two visits' frames may be; not at 0.4."""
    objects = make_objects([0.0], error=0.001)
    assert matched(make_sources([0.2], error=0.001), objects) == [1]
    assert matched(make_sources([0.4], error=0.001), objects) != [1]


@pytest.mark.parametrize("object_ra, is_matched", [(0.0, True), (90.0, False)])
def test_errors_turn_with_their_axes(object_ra, is_matched):
    """An object at the pole, poorly known in ra: east of ra 0 points at the source, 0.6 arcsec off on the meridian of ra 90;
    east of ra 90 does not."""
    objects = make_objects([0.0], ra=object_ra, dec=90.0, error=0.03)
    objects["ra"][:], objects["ra_err"][:] = object_ra, 0.3 / 3600
    sources = make_sources([0.0], ra=90.0, dec=90.0 - 0.6 / 3600, error=0.03)
    assert (matched(sources, objects) == [1]) == is_matched


@pytest.mark.parametrize("seed", range(5))
def test_no_order_matters(seed):
    """Crowded sources of three overlapping detectors, objects and claims in any order: the same result for each source."""
    rng = np.random.default_rng(seed)
    n, m = 120, 80
    sources = make_sources(*rng.uniform(0, 8, (2, n)), error=rng.uniform(0.02, 0.4, n), detector=rng.integers(0, 3, n))
    objects = make_objects(*rng.uniform(0, 8, (2, m)), error=rng.uniform(0.02, 0.2, m))
    claimed = [3, 8, 5]
    found = associate(sources, objects, CONFIG, claimed=claimed)
    one, two = rng.permutation(n), rng.permutation(m)
    again = associate(reordered(sources, one), reordered(objects, two), CONFIG, claimed=claimed[::-1])
    for name in ("dia_object_id", "is_new", "is_marginal", "is_duplicate", "separation_arcsec"):
        np.testing.assert_array_equal(getattr(found, name)[one], getattr(again, name))


def test_ties_are_broken_by_number():
    """Two objects at one place, two sources at another: the pairing depends on the numbers alone."""
    sources, objects = make_sources([0.0, 0.0]), make_objects([0.1, 0.1])
    found = dict(zip(sources["dia_source_id"], matched(sources, objects), strict=True))
    turned = reordered(sources, [1, 0]), reordered(objects, [1, 0])
    assert dict(zip(turned[0]["dia_source_id"], matched(*turned), strict=True)) == found
    assert set(found.values()) == {1, 2}


def test_at_most_one_source_an_object():
    """However crowded, no object has two sources of the visit."""
    rng = np.random.default_rng(9)
    sources = make_sources(*rng.uniform(0, 5, (2, 200)), error=0.5, detector=rng.integers(0, 4, 200))
    found = associate(sources, make_objects(*rng.uniform(0, 5, (2, 60))), CONFIG)
    numbers = found.dia_object_id[found.dia_object_id != 0]
    assert len(numbers) == len(set(numbers)) > 60


def test_a_source_seen_on_two_detectors_counts_once():
    """Where detectors overlap the better measurement keeps the object, known or new; the other is dropped."""
    snr = [20.0, 8.0]
    twice = make_sources([0.0, 0.1, 30.1, 30.0], detector=[1, 2, 1, 2], snr=[8.0, 20.0, *snr])
    found = associate(twice, make_objects([0.05]), CONFIG)
    assert found.is_duplicate.tolist() == [True, False, False, True]
    assert found.dia_object_id.tolist() == [0, 1, twice["dia_source_id"][2], 0]
    assert found.is_new.tolist() == [False, False, True, False]


def test_a_flagged_source_does_not_displace_a_clean_one():
    """On an overlap the unflagged measurement is kept even if the flagged one has more signal."""
    sources = make_sources([0.0, 0.1], detector=[1, 2], snr=[50.0, 10.0], centroid_flag=[True, False])
    found = associate(sources, {}, CONFIG)
    assert found.is_duplicate.tolist() == [True, False] and found.is_new.tolist() == [False, True]


def test_a_close_pair_on_an_overlap_stays_a_pair():
    """Two sources 0.8 arcsec apart, both seen by both detectors: two objects, two duplicates."""
    sources = make_sources([0.0, 0.8, 0.05, 0.75], detector=[1, 1, 2, 2], snr=[9.0, 9.0, 8.0, 8.0], error=0.05)
    found = associate(sources, {}, CONFIG)
    assert found.is_duplicate.tolist() == [False, False, True, True]


def test_neighbours_on_one_detector_are_no_duplicates():
    """Two sources of one detector are two things, however near."""
    assert associate(make_sources([0.0, 0.1]), {}, CONFIG).is_new.all()


def test_claimed_objects_are_not_given_twice():
    """An object that has a source of this visit keeps it: another source there is a duplicate; one beside it is new."""
    sources = make_sources([0.05, 0.9])
    found = associate(sources, make_objects([0.0]), CONFIG, claimed=[1])
    assert found.is_duplicate.tolist() == [True, False]
    assert found.dia_object_id.tolist() == [0, sources["dia_source_id"][1]]


def test_parts_of_a_visit_give_what_the_whole_gives():
    """A detector stored before the others, its objects claimed: no object has two sources, none is made twice."""
    rng = np.random.default_rng(21)
    place = rng.uniform(0, 300, (2, 40))
    parts = [make_sources(*(place + rng.normal(0, 0.05, (2, 40))), detector=d, ids=np.arange(40) + 1000 * d) for d in (1, 2)]
    first = associate(parts[0], {}, CONFIG)
    born = make_objects(*place, ids=first.dia_object_id)
    second = associate(parts[1], born, CONFIG, claimed=first.dia_object_id)
    assert second.is_duplicate.all() and not second.is_stored.any()
    assert associate(joined(*parts), {}, CONFIG).is_new.sum() == 40


@pytest.mark.parametrize("flag", MARGINAL_FLAGS)
def test_flagged_sources_make_no_objects(flag):
    """Each of the flags keeps an unmatched source from becoming an object, and none keeps a matched one from its own."""
    sources = make_sources([0.0, 20.0, 40.0], **{flag: [True, True, False]})
    found = associate(sources, make_objects([0.0]), CONFIG)
    assert found.is_marginal.tolist() == [False, True, False]
    assert found.dia_object_id.tolist() == [1, 0, sources["dia_source_id"][2]]


def test_flags_are_columns_of_the_sources():
    """Each flag that makes a source marginal is a column that sources have, so that none is looked for in vain."""
    assert set(MARGINAL_FLAGS) <= set(DIA_SOURCE.by_name)


def test_unreliable_sources_make_no_objects():
    """Reliability below 0.1 is marginal; none at all (NaN, or masked) passes."""
    sources = make_sources([0.0, 20.0, 40.0], reliability=[0.09, 0.1, np.nan])
    assert associate(sources, {}, CONFIG).is_marginal.tolist() == [True, False, False]
    sources["reliability"] = np.ma.masked_array(np.zeros(3), mask=[False, True, True])
    assert associate(sources, {}, CONFIG).is_marginal.tolist() == [True, False, False]


def test_sources_darker_than_the_sky_make_no_objects():
    """On the visit image itself nothing is fainter than no light; what was not measured there passes."""
    sources = make_sources(20.0 * np.arange(5), science_flux=[-2.1, -1.9, np.nan, -9.0, 9.0], science_flux_err=1.0)
    sources["science_flux_err"][3] = np.nan
    found = associate(sources, make_objects([100.0]), CONFIG)
    assert found.is_marginal.tolist() == [True, False, False, False, False]
    assert associate(sources, make_objects([0.0]), CONFIG).dia_object_id[0] == 1


@pytest.mark.parametrize("years", [-1.5, 2.0])
def test_a_fast_object_is_matched_where_it_is_now(years):
    """1 arcsec a year for two years: the object is found at its new place, and a source at its old place is new."""
    objects = make_objects([0.0], mjd=MJD, pm_ra=600.0, pm_dec=-800.0, pm_ra_err=10.0, pm_dec_err=10.0)
    sources = make_sources([0.6 * years, 0.0], [-0.8 * years, 0.0], mjd=MJD + 365.25 * years, error=0.03)
    found = associate(sources, objects, CONFIG)
    assert found.dia_object_id.tolist() == [1, sources["dia_source_id"][1]]
    assert found.separation_arcsec[0] < 0.001


def test_errors_of_proper_motion_widen_the_search():
    """0.6 arcsec off after two years: too far for a motion known to 10 mas/yr, not for one known to 150."""
    sources = make_sources([2.6], mjd=MJD + 730.5, error=0.03)
    is_found = []
    for error in (10.0, 150.0):
        objects = make_objects([0.0], mjd=MJD, pm_ra=1000.0, pm_dec=0.0, pm_ra_err=error, pm_dec_err=error)
        is_found.append(matched(sources, objects) == [1])
    assert is_found == [False, True]


@pytest.mark.parametrize("pm, error", [(np.nan, np.nan), (5000.0, 4000.0), (5000.0, np.nan)])
def test_proper_motion_not_known_is_none(pm, error):
    """A motion without value, without error, or of little significance leaves the object where it was."""
    objects = make_objects([0.0], mjd=MJD, pm_ra=pm, pm_dec=pm, pm_ra_err=error, pm_dec_err=error)
    assert matched(make_sources([0.1], mjd=MJD + 365.25), objects) == [1]


def test_a_detector_full_of_new_objects_is_refused():
    """More than the limit: nothing of that detector is kept, a message says why, and the others are as without it."""
    config = AssociateConfig(max_new_objects_per_detector=20)
    rng = np.random.default_rng(5)
    crowd = make_sources(*rng.uniform(0, 60, (2, 30)), detector=7, ids=np.arange(30) + 7000, snr=99.0)
    good = make_sources(*rng.uniform(0, 60, (2, 20)), detector=8, ids=np.arange(20) + 8000)
    objects = make_objects(*rng.uniform(0, 60, (2, 30)))
    found, alone = associate(joined(crowd, good), objects, config), associate(good, objects, config)
    assert list(found.refused) == [7] and "wanted at most 20" in found.refused[7]
    assert found.is_refused.tolist() == [True] * 30 + [False] * 20
    assert not found.is_stored[:30].any() and not found.is_marginal[:30].any()
    np.testing.assert_array_equal(found.dia_object_id[30:], alone.dia_object_id)


def test_wrong_tables_are_refused():
    """Missing columns, numbers that occur twice, and sources of two visits are errors that say so."""
    sources, objects = make_sources([0.0, 5.0]), make_objects([0.0, 5.0])
    cases = [
        ({name: sources[name] for name in sources if name != "ra"}, objects, "without: ra"),
        (sources | {"dia_source_id": np.array([4, 4])}, objects, "dia_source_id must be unique, got 4"),
        (sources, objects | {"dia_object_id": np.array([4, 4])}, "dia_object_id must be unique"),
        (sources | {"visit": np.array([1, 2])}, objects, "visits 1, 2"),
    ]
    for one, two, words in cases:
        with pytest.raises(InputError, match=words):
            associate(one, two, CONFIG)


def test_inputs_are_unchanged():
    """No column of sources or objects is written to."""
    sources, objects = make_sources([0.0, 5.0]), make_objects([0.0], pm_ra=600.0, pm_dec=0.0, pm_ra_err=1.0, pm_dec_err=1.0)
    for column in (*sources.values(), *objects.values()):
        column.setflags(write=False)
    associate(sources, objects, CONFIG, claimed=[1])


def test_predicted_positions_are_those_association_expects():
    """Objects move by significant proper motion and else stay."""
    objects = make_objects([0.0, 9.0], pm_ra=[1000.0, 1000.0], pm_dec=0.0, pm_ra_err=[10.0, 900.0], pm_dec_err=10.0)
    moved = predicted_positions(objects, MJD + 365.25, CONFIG)
    east = (moved["ra"] - objects["ra"]) * np.cos(np.radians(-30.0)) * 3600
    np.testing.assert_allclose(east, [1.0, 0.0], atol=1e-6)
    assert moved["dia_object_id"].tolist() == [1, 2]
