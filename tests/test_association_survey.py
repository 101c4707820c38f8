"""Fifty visits of a field of known truth: objects stay whole, apart and complete."""

import numpy as np
import pytest
from catalogue_survey import N_ASTEROIDS, N_FAST, N_FLAGGED, N_PAIRS, N_UNKNOWN, N_VARIABLES, N_VISITS, run_survey
from scipy.spatial import cKDTree


@pytest.fixture(scope="module")
def survey():
    return run_survey(20270101)


def of_objects(log):
    """The stored sources of persistent objects: who they are, and the DIAObject they were given to."""
    rows = (log["who"] >= 0) & (log["dia_object_id"] != 0)
    return log["who"][rows], log["dia_object_id"][rows]


def shares(who, numbers):
    """For each true object: its sources, the sources in its largest DIAObject, its DIAObjects."""
    pairs, counts = np.unique(np.stack([who, numbers]), axis=1, return_counts=True)
    names, first = np.unique(pairs[0], return_index=True)
    return names, np.add.reduceat(counts, first), np.maximum.reduceat(counts, first), np.diff(np.append(first, pairs.shape[1]))


def too_close(truth, log):
    """True objects with another, or with anything else ever seen, within 1 arcsec: there, positions do not tell them apart."""
    true_place = np.stack([truth.east, truth.north], axis=1)
    place, is_foreign = np.stack([log["east"], log["north"]], axis=1), log["who"] < 0
    near = cKDTree(place[is_foreign]).query_ball_point(place, 1.0, return_length=True) > 0
    return np.unique(np.append(log["who"][~is_foreign & near], cKDTree(true_place).query_pairs(0.999, output_type="ndarray")))


def test_the_survey_is_what_it_says(survey):
    """Tens of thousands of sources, overlaps, close pairs: enough for the fractions below to mean something."""
    _, log = survey
    who, _ = of_objects(log)
    assert len(who) > 25_000 and len(np.unique(who)) > 950 and log["is_duplicate"].sum() > 1000


def test_sources_of_an_object_are_in_one_dia_object(survey):
    """At least 99 % of the DIASources of each kind of object are in the object's main DIAObject, close pairs included."""
    names, total, most, _ = shares(*of_objects(survey[1]))
    kinds = {"all": names >= 0, "pairs": names < 2 * N_PAIRS, "supernovae": names >= N_VARIABLES + N_FAST}
    kinds["fast"] = (names >= N_VARIABLES) & (names < N_VARIABLES + N_FAST)
    for kind, rows in kinds.items():
        assert most[rows].sum() >= 0.99 * total[rows].sum(), kind


def test_objects_are_not_split(survey):
    """Fewer than 0.1 % of the objects have a second DIAObject: of a thousand, none. Pairs at 1 to 3 arcsec count."""
    truth, log = survey
    names, _, _, pieces = shares(*of_objects(log))
    apart = ~np.isin(names, too_close(truth, log))
    assert apart.mean() > 0.95 and (pieces[apart] > 1).mean() < 0.001


def test_dia_objects_are_not_mixed(survey):
    """At least 99.9 % of a DIAObject's sources are of one true object; artifacts that fall on one are what is left."""
    log = survey[1]
    rows = log["dia_object_id"] != 0
    _, total, most, _ = shares(log["dia_object_id"][rows], log["who"][rows])
    assert most.sum() >= 0.999 * total.sum()


def test_histories_are_complete(survey):
    """Every detection of an object in a visit is stored once and only once, on overlapping detectors too."""
    log = survey[1]
    rows = log["who"] >= 0
    event = log["who"][rows] * N_VISITS + log["visit"][rows]
    stored = np.bincount(event, weights=log["is_stored"][rows])[np.unique(event)]
    assert (stored == 1).mean() > 0.9999


def test_no_object_has_two_sources_of_a_visit(survey):
    """Over all visits, each DIAObject has at most one source a visit."""
    log = survey[1]
    rows = log["dia_object_id"] != 0
    pairs = np.stack([log["dia_object_id"][rows], log["visit"][rows]])
    assert np.unique(pairs, axis=1).shape[1] == rows.sum()


def test_asteroids_make_no_objects(survey):
    """Known asteroids are found where predicted; those without a prediction are new objects, each seen once."""
    log = survey[1]
    known = (log["who"] == -1) & ~log["is_duplicate"]
    assert known.sum() >= N_VISITS * N_ASTEROIDS * 0.999
    assert (log["ss_object_id"][known] != 0).mean() > 0.999
    assert (log["ss_object_id"] != 0).sum() <= N_VISITS * N_ASTEROIDS
    unknown = (log["who"] == -2) & ~log["is_duplicate"]
    assert log["is_new"][unknown].sum() >= 0.99 * N_VISITS * N_UNKNOWN


def test_flagged_artifacts_leave_no_trace(survey):
    """Flagged sources that belong to nothing make no objects: all but those that fell on something are marginal."""
    log = survey[1]
    assert log["is_marginal"].sum() >= 0.99 * N_VISITS * N_FLAGGED
    assert not log["is_stored"][log["is_marginal"]].any()
