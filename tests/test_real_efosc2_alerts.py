"""Real raw frames to alerts: stars put into three dithers of a field become one object each, with their history."""

from collections import Counter

import numpy as np
import pytest
from efosc2 import CONFIG, DITHERS, FIELDS, calibrated, inject, pipeline_for, raws
from realdata import real_data
from scipy.spatial import cKDTree

from nightstream.io.alerts.files import read_alert_file
from nightstream.io.database.prompt_database import open_database
from nightstream.io.products import write_detector_products
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, unit_vectors
from nightstream.scheduler.publish import Publisher
from nightstream.scheduler.publish_queue import EndedVisit

pytestmark = pytest.mark.real

SNR = 20.0  # of an injected star, roughly: faint enough to scatter, bright enough to be found each time
MARGIN_PIX = 30  # from the edge, where the template's dithers end


def places(data, field, n=60):
    """Sky positions of injected stars, well apart."""
    rng = np.random.default_rng(FIELDS.index(field))
    exposure = calibrated(data, field)[0].exposure
    ny, nx = exposure.pixels.shape
    grid = np.stack(np.meshgrid(np.arange(70, nx - 70, 90.0), np.arange(70, ny - 70, 90.0)), axis=-1).reshape(-1, 2)
    x, y = (rng.permutation(grid)[:n] + rng.uniform(-25, 25, (n, 2))).T
    return exposure.wcs.sky_from_pixel(x, y)


def on_usable_pixels(difference, ra, dec):
    """Which positions are well inside a difference on a pixel that can be used, and where."""
    x, y = difference.wcs.pixel_from_sky(ra, dec)
    ny, nx = difference.pixels.shape
    good = (x > MARGIN_PIX) & (x < nx - MARGIN_PIX) & (y > MARGIN_PIX) & (y < ny - MARGIN_PIX)
    mask = difference.pixels.mask[np.rint(y[good]).astype(int), np.rint(x[good]).astype(int)]
    good[good] = (mask & int(MaskPlane.unusable())) == 0
    return good, (x[good], y[good])


@pytest.fixture(scope="module", params=FIELDS)
def night(request, tmp_path_factory):
    """All alerts of a field, visit by visit, and in how many frames each injected star was: (packets, ra, dec, frames)."""
    data, field = real_data("efosc2_raw"), request.param
    folder = tmp_path_factory.mktemp(field)
    ra, dec = places(data, field)
    seen, packets = np.zeros(len(ra), int), []
    with open_database(folder / "prompt.duckdb") as database:
        publisher = Publisher(database=database, engine=CONFIG, spool_dir=folder / "spool", schema_version="11.1")
        for dither in DITHERS:
            pipeline, raw = pipeline_for(data, field, dither), raws(data / field)[dither]
            before = pipeline.process(raw)
            clean, (good, (x, y)) = before.visit_image, on_usable_pixels(before.difference, ra, dec)
            seen += good
            variance = clean.pixels.variance[np.rint(y).astype(int), np.rint(x).astype(int)]
            electrons = SNR * np.sqrt(variance * 4 * np.pi) * clean.psf.sigma_pix  # area of a Gaussian PSF's noise
            stars = inject(raw, clean, pipeline.calibrations.flat.image, x, y, electrons, seed=dither)
            product = write_detector_products(folder, pipeline.process(stars))
            done = publisher.publish(EndedVisit(raw.info.visit, (product,), raw.info.midpoint_mjd_tai))
            assert done.problems == ()
    for path in (folder / "spool").glob("*.avro"):
        packets.extend(read_alert_file(path))
    return packets, ra, dec, seen


def alerts_of(night):
    """For each injected star the packets within an arcsecond of it, in order of time."""
    packets, ra, dec, _ = night
    sources = [packet["diaSource"] for packet in packets]
    tree = cKDTree(unit_vectors(np.array([s["ra"] for s in sources]), np.array([s["dec"] for s in sources])))
    near = tree.query_ball_point(unit_vectors(ra, dec), 1.0 / ARCSEC_PER_RADIAN)
    return [sorted((packets[i] for i in rows), key=lambda packet: packet["diaSource"]["midpointMjdTai"]) for rows in near]


def test_injected_stars_are_alerted_in_every_dither(night):
    """Of the stars on usable pixels of a difference at least 95 % make an alert, none more than one a visit."""
    alerts, seen = alerts_of(night), night[3]
    visits = [[packet["diaSource"]["visit"] for packet in of_star] for of_star in alerts]
    assert all(len(set(of_star)) == len(of_star) for of_star in visits)
    assert sum(map(len, visits)) >= 0.95 * seen.sum()


def test_each_injected_star_is_one_object(night):
    """At least 99 % of a star's sources are in one DIAObject, through real registration errors."""
    counts = [Counter(packet["diaSource"]["diaObjectId"] for packet in of_star) for of_star in alerts_of(night) if of_star]
    together, everything = sum(max(count.values()) for count in counts), sum(count.total() for count in counts)
    assert together >= 0.99 * everything
    assert everything > 80  # the claim is about many


def test_histories_grow_with_the_visits(night):
    """The n-th alert of an object shows the n - 1 before it, and a forced flux of every visit so far."""
    for of_star in alerts_of(night):
        objects = {packet["diaSource"]["diaObjectId"] for packet in of_star}
        if len(objects) == 1:
            for number, packet in enumerate(of_star):
                assert len(packet["prvDiaSources"] or ()) == number and packet["diaObject"]["nDiaSources"] == number + 1
                assert len(packet["prvDiaForcedSources"]) >= number + 1


def test_forced_and_detected_fluxes_agree(night):
    """At a detection the forced flux at the object's place is the fitted one within 3 of its errors, for 95 % of them."""
    pulls = []
    for packet in (packet for of_star in alerts_of(night) for packet in of_star):
        source = packet["diaSource"]
        (forced,) = (row for row in packet["prvDiaForcedSources"] if row["visit"] == source["visit"])
        pulls.append((forced["psfFlux"] - source["psfFlux"]) / source["psfFluxErr"])
    assert np.mean(np.abs(pulls) < 3) >= 0.95
