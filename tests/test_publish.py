"""From stored products to the database and the packets: complete, once, and the same whatever the order."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.io import fits
from catalogue_night import MJD, STEP_DEG, Night, make_visit, true_sky

from nightstream.errors import ConflictError
from nightstream.simulate.catalogue import write_visit


@pytest.fixture
def night(tmp_path):
    made = Night(tmp_path)
    yield made
    made.database.close()


def test_every_detection_becomes_an_alert_with_all_its_parts(night, tmp_path):
    """The packet has its object, its forced photometry and three stamps with image, variance, mask and PSF."""
    ra, dec, flux = true_sky()
    visit = make_visit(1)
    done = night.publish(visit, write_visit(tmp_path, visit, ra, dec, flux))
    packets = night.alerts()
    assert done.n_alerts == done.n_new_objects == len(ra) == len(packets) and done.problems == ()
    for number, packet in packets.items():
        assert packet["diaObject"]["diaObjectId"] == number and packet["diaObject"]["nDiaSources"] == 1
        assert packet["prvDiaSources"] is None and len(packet["prvDiaForcedSources"]) == 1
        for name in ("cutoutDifference", "cutoutScience", "cutoutTemplate"):
            with fits.open(_opened(packet[name])) as hdus:
                assert [hdu.name for hdu in hdus[1:]] == ["UNCERT", "MASK", "PSFIMAGE"] and hdus[0].shape == (30, 30)


def test_histories_are_complete(night, tmp_path):
    """After three visits an alert shows the two detections before it, and a forced flux of every visit."""
    ra, dec, flux = true_sky()
    for number in (1, 2, 3):
        visit = make_visit(number, MJD + number)
        night.publish(visit, write_visit(tmp_path, visit, ra, dec, flux))
    last = [packet for packet in night.alerts().values() if packet["diaSource"]["visit"] == 3]
    assert len(last) == len(ra)
    for packet in last:
        assert [source["visit"] for source in packet["prvDiaSources"]] == [1, 2]
        assert [forced["visit"] for forced in packet["prvDiaForcedSources"]] == [1, 2, 3]
        assert packet["diaObject"]["nDiaSources"] == 3


def test_known_objects_are_forced_where_nothing_was_detected(night, tmp_path):
    """The second visit finds none of them; each still gets a flux, which is zero within its error."""
    ra, dec, flux = true_sky()
    first, second = make_visit(1), make_visit(2, MJD + 1)
    night.publish(first, write_visit(tmp_path, first, ra, dec, flux))
    night.publish(second, write_visit(tmp_path, second, ra[:0], dec[:0], flux[:0]))
    _, forced = night.database.history(np.array(sorted(night.alerts())), 0.0)
    later = forced["visit"] == 2
    assert later.sum() == len(ra)
    np.testing.assert_array_less(np.abs(forced["psf_flux"][later]), forced["psf_flux_limit"][later])


def test_publishing_again_changes_nothing(night, tmp_path):
    """Rows, and files, stay as they are."""
    visit = make_visit(1)
    products = write_visit(tmp_path, visit, *true_sky())
    night.publish(visit, products)
    rows, files = night.database.row_counts(), {p: p.read_bytes() for p in (tmp_path / "spool").iterdir()}
    assert night.publish(visit, products).n_alerts == 0
    assert night.database.row_counts() == rows
    assert {p: p.read_bytes() for p in (tmp_path / "spool").iterdir()} == files


def test_the_order_of_detectors_does_not_matter(tmp_path):
    """Rows are equal to the last bit, but for the time at which they were made."""
    tables = []
    for name, order in (("ab", slice(None)), ("ba", slice(None, None, -1))):
        (tmp_path / name).mkdir()
        night, visit = Night(tmp_path / name), make_visit(1, overlap_pix=100)
        products = write_visit(tmp_path / name, visit, *true_sky(40))
        night.publish(visit, products[order])
        tables.append(night.database.history(np.array(sorted(night.alerts())), 0.0))
        night.database.close()
    for a, b in zip(*tables, strict=True):
        for column in a:
            if column != "time_processed_mjd_tai":
                np.testing.assert_array_equal(a[column], b[column])


def test_an_object_on_two_detectors_is_one_object(night, tmp_path):
    """Neighbours overlap by 100 pixels: what both saw makes one source, one object and one alert."""
    ra, dec, flux = true_sky(40)
    visit = make_visit(1, overlap_pix=100)
    covered = ra < visit.wcs(1).crval[0] + 0.45 * STEP_DEG
    done = night.publish(visit, write_visit(tmp_path, visit, ra[covered], dec[covered], flux[covered]))
    assert done.n_duplicates > 0 and done.n_alerts == done.n_new_objects == covered.sum()


def test_a_detector_that_is_done_later_leaves_claimed_objects_alone(night, tmp_path):
    """The first detector made objects of this visit; the overlapping second one adds none and gives them no second source."""
    ra, dec, flux = true_sky(40)
    visit = make_visit(1, overlap_pix=100)
    covered = ra < visit.wcs(1).crval[0] + 0.45 * STEP_DEG
    products = write_visit(tmp_path, visit, ra[covered], dec[covered], flux[covered])
    first, second = (night.publish(visit, [product]) for product in products)
    assert second.n_duplicates > 0 and first.n_alerts + second.n_alerts == covered.sum()
    claimed = night.database.claimed_objects(1)
    assert len(claimed) == len(set(claimed.tolist())) == covered.sum()


def test_a_broken_product_is_told_and_stops_no_other(night, tmp_path):
    """The error names file and visit; the other detector's alerts are there."""
    visit = make_visit(1)
    broken, good = write_visit(tmp_path, visit, *true_sky())
    broken.write_bytes(broken.read_bytes()[:5000])
    done = night.publish(visit, [broken, good])
    assert done.detectors == (1,) and done.n_alerts > 0
    assert len(done.problems) == 1 and str(broken) in str(done.problems[0]) and done.problems[0].visit == 1


def test_a_visit_is_done_again_when_others_wrote_meanwhile(tmp_path):
    """While the visit is packed, another process stores an overlapping one: the objects of that one are then known."""
    ra, dec, flux = true_sky()
    other, visit = make_visit(1), make_visit(2, MJD + 0.01)
    first, products = write_visit(tmp_path, other, ra, dec, flux), write_visit(tmp_path, visit, ra, dec, flux)
    calls = []

    def meanwhile(batch):
        calls.append(batch.visit)
        if calls == [2]:
            night.publish(other, first)
        return ()

    night = Night(tmp_path, on_alerts=meanwhile)
    done = night.publish(visit, products)
    assert calls == [2, 1, 2] and done.n_alerts == len(ra) and done.n_new_objects == 0
    night.database.close()


def test_a_conflict_without_end_is_an_error(tmp_path, monkeypatch):
    """Somebody always writes first: after a few attempts the visit is given up, and told."""
    night, visit = Night(tmp_path), make_visit(1)
    monkeypatch.setattr(type(night.database), "write", lambda self, batch: (_ for _ in ()).throw(ConflictError("taken")))
    with pytest.raises(ConflictError, match="visit 1"):
        night.publish(visit, write_visit(tmp_path, visit, *true_sky()))
    night.database.close()


def test_a_lost_preload_costs_nothing(tmp_path):
    """What the worker forced and what is forced from the stored product are the same rows."""
    ra, dec, flux = true_sky()
    first, second = make_visit(1), make_visit(2, MJD + 1)
    night = Night(tmp_path)
    night.publish(first, write_visit(tmp_path, first, ra, dec, flux))
    products = write_visit(tmp_path, second, ra, dec, flux)
    night.publish(second, products)
    _, forced = night.database.history(np.array(sorted(night.alerts())), 0.0)
    assert (np.unique(forced["dia_object_id"], return_counts=True)[1] == 2).all()
    night.database.close()
    shutil.rmtree(tmp_path / "spool")


def _opened(data):
    import io

    return io.BytesIO(data)
