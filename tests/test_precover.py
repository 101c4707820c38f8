"""Precovery: what was there before an object was found, measured on stored products with known truth."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from exposures import NJY_PER_ELECTRON, epochs
from product_scene import assert_same
from scenes import lattice
from small_survey import CAMERA
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.engine.force import flux_limit, force_photometry
from nightstream.engine.values import DetectorProducts, Exposure
from nightstream.errors import FileError, InputError
from nightstream.io.database.prompt_database import VisitBatch, open_database
from nightstream.io.product_blocks import read_nearby_pixels
from nightstream.io.products import product_path, read_detector_products, write_detector_products
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.wcs import Wcs
from nightstream.scheduler.precover import KEY, force_from_product, precover
from nightstream.simulate.truth import read_table

HOST = SimpleNamespace(array=np.asarray)
NOW = 61010.0
FOUND = 61000.5  # MJD TAI of every object's first source
N_SIDE, SPACING = 11, 27
SHAPE = (N_SIDE * SPACING,) * 2  # 297: two by two stored blocks
DETECTORS = (94, 95)
CENTRES = {94: 150.0, 95: 150.03}  # ra; detectors of 60", turned by 20 deg, stand 94" apart
BOX = np.array([[149.9, -30.1], [150.1, -30.1], [150.1, -29.9], [149.9, -29.9]])


def detector_wcs(detector) -> Wcs:
    middle = (SHAPE[1] - 1) / 2
    return Wcs.tan(CENTRES[detector], -30.0, middle, middle, 0.2, angle_deg=20.0)


def products_of(visit, detector, mjd, seed, flux_njy, x, y, mask=None, base=3e3) -> DetectorProducts:
    """Products of one detector: stars of ``base`` electrons that brightened by ``flux_njy`` since the template."""
    rng = np.random.default_rng(seed)
    now = base + flux_njy / NJY_PER_ELECTRON
    images = epochs(HOST, rng, SHAPE, (x, y, now), (x, y, np.full(len(x), base)), mask)
    difference, science = (_located(image, visit, detector, mjd) for image in (images.difference, images.science))
    return DetectorProducts(
        visit_image=science, difference=difference, dia_sources={}, forced_sources={}, timings_s={}, provenance={},
        summary={"psf_flux_limit": flux_limit(difference)},
    )  # fmt: skip


def _located(image: Exposure, visit, detector, mjd) -> Exposure:
    info = replace(image.info, visit=visit, detector=detector, midpoint_mjd_tai=mjd)
    return replace(image, info=info, wcs=detector_wcs(detector))


def objects_at(wcs, x, y, first_id=1, found=FOUND) -> dict:
    ra, dec = wcs.sky_from_pixel(np.asarray(x, float), np.asarray(y, float))
    count = len(ra)
    return {
        "dia_object_id": np.arange(first_id, first_id + count), "ra": ra, "dec": dec,
        "first_dia_source_mjd_tai": np.full(count, found),
    }  # fmt: skip


def visit_row(visit, detector, mjd) -> dict:
    x, y = np.array([0, 0, SHAPE[1] - 1, SHAPE[1] - 1]), np.array([0, SHAPE[0] - 1, SHAPE[0] - 1, 0])
    ra, dec = detector_wcs(detector).sky_from_pixel(x, y)
    corners = {f"{name}ra": a for name, a in zip(("llc", "ulc", "urc", "lrc"), ra, strict=True)}
    corners |= {f"{name}dec": d for name, d in zip(("llc", "ulc", "urc", "lrc"), dec, strict=True)}
    return {"visit": visit, "detector": detector, "midpoint_mjd_tai": mjd} | corners


class Watched:
    """A prompt database that counts transactions of precovery, and dies before the one that it is told."""

    def __init__(self, database, dies_after=None):
        self.database, self.dies_after, self.transactions, self.forget = database, dies_after, 0, False

    def __getattr__(self, name):
        return getattr(self.database, name)

    def objects_without_precovery(self, since_mjd):
        """Those that are new, or once more those that ever were."""
        return self.database.objects_in([BOX], 0.0, FOUND) if self.forget else self.database.objects_without_precovery(since_mjd)

    def add_forced(self, table):
        if self.transactions == self.dies_after:
            raise KeyboardInterrupt
        self.transactions += 1
        return self.database.add_forced(table)

    def forced(self, survey) -> dict:
        """All forced sources, sorted, without their own numbers."""
        table = self.history(survey.objects["dia_object_id"], 0.0)[1]
        order = np.lexsort([table[name] for name in ("detector", "visit", "dia_object_id")])
        return {name: column[order] for name, column in table.items() if name != "dia_forced_source_id"}

    def marked(self, survey) -> set:
        return set(survey.objects["dia_object_id"]) - set(self.database.objects_without_precovery(0.0)["dia_object_id"])


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Three visits of two detectors, each star with a flux of its own in every visit; the last finds the objects."""
    folder, truth, visits, objects = tmp_path_factory.mktemp("products"), {}, [], []
    for index, detector in enumerate(DETECTORS):
        x, y, _ = lattice(np.random.default_rng(index), N_SIDE, SPACING)
        objects.append(objects_at(detector_wcs(detector), x, y, first_id=1000 * detector))
        for visit, mjd in ((1, FOUND - 20.0), (2, FOUND - 1.0), (3, FOUND)):
            flux = np.random.default_rng([visit, detector]).uniform(-1e3, 4e3, len(x))
            truth |= {(1000 * detector + i, visit, detector): value for i, value in enumerate(flux)}
            write_detector_products(folder, products_of(visit, detector, mjd, visit * 1000 + detector, flux, x, y))
            visits.append(visit_row(visit, detector, mjd))
    table = {name: np.concatenate([part[name] for part in objects]) for name in objects[0]}
    return SimpleNamespace(folder=folder, truth=truth, visits=visits, objects=table)


@pytest.fixture
def database(survey, tmp_path):
    """Makes databases in which every visit is published and every object new; closes them."""
    with ExitStack() as stack:

        def make(visits=(), objects=survey.objects, forced=(), **options) -> Watched:
            path = tmp_path / f"prompt-{len(list(tmp_path.glob('prompt*')))}.duckdb"
            opened = stack.enter_context(open_database(path))
            publish(opened, [*survey.visits, *visits], objects, forced)
            return Watched(opened, **options)

        yield make


def publish(opened, visits, objects, forced) -> None:
    """Store visits, the objects with the first of them."""
    first = objects["first_dia_source_mjd_tai"]
    objects = objects | {"last_dia_source_mjd_tai": first, "validity_start_mjd_tai": first}
    for number in sorted({row["visit"] for row in visits}):
        rows = [row for row in visits if row["visit"] == number]
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        opened.write(VisitBatch(visit=number, detector_visits=table, dia_objects=objects))
        objects = {}
    for row in forced:
        opened.add_forced({name: np.array([value]) for name, value in row.items()})


def copy_products(survey, folder):
    """Links to all products, for a test that breaks some."""
    for row in survey.visits:
        path = product_path(folder, row["visit"], row["detector"])
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(product_path(survey.folder, row["visit"], row["detector"]).read_bytes())
    return folder


def test_pulls_of_precovered_fluxes_are_standard_normal(survey, database):
    """Every object has its true flux in every visit, on the difference and on the visit image."""
    store = database()
    summary = precover(store, survey.folder, now_mjd_tai=NOW)
    assert (summary.n_products, summary.n_rows, summary.failures) == (6, 6 * N_SIDE**2, ())
    rows = store.forced(survey)
    truth = np.array([survey.truth[key] for key in zip(*(rows[name].tolist() for name in KEY), strict=True)])
    for name, base in (("psf", 0.0), ("science", 3e3 * NJY_PER_ELECTRON)):
        pull = (rows[f"{name}_flux"] - base - truth) / rows[f"{name}_flux_err"]
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size) and abs(pull.std() - 1) < 4 / np.sqrt(2 * pull.size)
    assert store.marked(survey) == set(survey.objects["dia_object_id"]) and summary.n_done == summary.n_objects
    assert set(rows["time_processed_mjd_tai"]) == {NOW}


def test_doing_it_twice_changes_nothing(survey, database):
    """The second run finds nothing to do, also when the objects look new again."""
    store = database()
    precover(store, survey.folder, now_mjd_tai=NOW)
    before, transactions = store.forced(survey), store.transactions
    assert precover(store, survey.folder, now_mjd_tai=NOW + 1).n_objects == 0
    store.forget = True
    summary = precover(store, survey.folder, now_mjd_tai=NOW + 1)
    assert summary.n_products == 0 and summary.n_done == summary.n_objects == 2 * N_SIDE**2
    assert store.transactions == transactions
    assert_same(store.forced(survey), before)


def test_killed_half_way_it_goes_on_where_it_stopped(survey, database):
    """What was measured before the end is not measured again, and the result is that of an undisturbed run."""
    undisturbed, store = database(), database(dies_after=4)
    precover(undisturbed, survey.folder, now_mjd_tai=NOW)
    with pytest.raises(KeyboardInterrupt):
        precover(store, survey.folder, now_mjd_tai=NOW)
    assert store.transactions == 4 and not store.marked(survey)
    store.dies_after = None
    assert precover(store, survey.folder, now_mjd_tai=NOW).n_products == 2
    assert store.marked(survey) == undisturbed.marked(survey)
    assert_same(store.forced(survey), undisturbed.forced(survey))


def test_broken_products_are_told_and_the_rest_is_done(survey, tmp_path, database):
    """A missing and a corrupt product are an error each, with file, visit and detector; mended, they are made good."""
    folder = copy_products(survey, tmp_path)
    missing, corrupt = product_path(folder, 1, 94), product_path(folder, 2, 94)
    kept = missing.read_bytes(), corrupt.read_bytes()
    missing.unlink()
    corrupt.write_bytes(kept[1][: len(kept[1]) // 2])
    store = database()
    summary = precover(store, folder, now_mjd_tai=NOW)
    assert [(error.visit, error.detector, error.path) for error in summary.failures] == [
        (1, 94, str(missing)),
        (2, 94, str(corrupt)),
    ]
    assert all(isinstance(error, FileError) for error in summary.failures) and summary.n_rows == 4 * N_SIDE**2
    assert {number // 1000 for number in store.marked(survey)} == {95}
    missing.write_bytes(kept[0])
    corrupt.write_bytes(kept[1])
    assert precover(store, folder, now_mjd_tai=NOW).failures == ()
    assert len(store.forced(survey)["ra"]) == 6 * N_SIDE**2 and len(store.marked(survey)) == 2 * N_SIDE**2


def test_products_gone_for_good_do_not_keep_objects_for_ever(survey, tmp_path, database):
    """Once the newest visit is a month later, an object whose images are gone is done with."""
    store = database(visits=[visit_row(9, 94, FOUND + 31.0)])
    summary = precover(store, tmp_path, now_mjd_tai=NOW)
    assert len(summary.failures) == 7 and len(store.marked(survey)) == 2 * N_SIDE**2


def test_only_the_days_before_the_first_source_count(survey, database):
    """A visit older than the window is left alone."""
    store = database()
    precover(store, survey.folder, now_mjd_tai=NOW, days=10.0)
    assert set(store.forced(survey)["visit"]) == {2, 3}


def test_what_the_database_has_is_not_measured_again(survey, database):
    """The forced source that came with the alert stays, and its product is not opened for its sake."""
    one = {name: column[:1] for name, column in survey.objects.items()}
    row = {name: one[name][0] for name in ("dia_object_id", "ra", "dec")} | {"visit": 3, "detector": 94}
    store = database(objects=one, forced=[row | {"midpoint_mjd_tai": FOUND, "psf_flux": 1.0}])
    assert precover(store, survey.folder, now_mjd_tai=NOW).n_products == 2
    rows = store.forced(survey)
    np.testing.assert_array_equal(rows["visit"], [1, 2, 3])
    assert rows["psf_flux"][2] == 1.0 and (rows["psf_flux"][:2] != 1.0).all()


def test_nothing_new_is_no_work(survey, tmp_path, database):
    """Without new objects not even the list of visits is read."""
    store = database(objects={name: column[:0] for name, column in survey.objects.items()})
    store.detector_visits = None
    assert precover(store, tmp_path, now_mjd_tai=NOW).n_objects == 0


def test_progress_counts_products(survey, database):
    """One step a product, up to their number."""
    steps = []
    precover(database(), survey.folder, now_mjd_tai=NOW, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("n_positions", [1, 5, 121])
def test_rows_are_those_that_the_worker_would_have_stored(survey, tmp_path, n_positions):
    """Measured later, and on a few blocks alone, every column has the type and the bits that it has in a product."""
    path = product_path(survey.folder, 2, 95)
    positions = {name: survey.objects[name][-n_positions:] for name in ("dia_object_id", "ra", "dec")}
    whole = read_detector_products(path)
    forced = force_photometry(whole.visit_image, whole.difference, positions)
    stored = read_detector_products(write_detector_products(tmp_path, replace(whole, forced_sources=forced))).forced_sources
    del stored["dia_source_id"]
    assert_same(force_from_product(path, positions), stored)


def test_only_blocks_with_positions_are_read(survey):
    """Far from every position no pixel is known; within a PSF of one, all are."""
    path = product_path(survey.folder, 1, 94)
    ra, dec = detector_wcs(94).sky_from_pixel(np.array([100.0, -400.0]), np.array([100.0, 0.0]))
    near = read_nearby_pixels(path, ra, dec)
    for image in (near.visit_image, near.difference):
        assert image.pixels.shape == SHAPE
        assert np.isfinite(image.pixels.variance[:256, :256]).all()
        assert np.isnan(image.pixels.variance[256:]).all() and np.isnan(image.pixels.variance[:, 256:]).all()
    ra, dec = detector_wcs(94).sky_from_pixel(np.array([250.0]), np.array([250.0]))
    assert np.isfinite(read_nearby_pixels(path, ra, dec).difference.pixels.variance).all()


def test_masked_pixels_get_limits_and_positions_off_the_image_no_row(tmp_path):
    """Where nothing can be measured the row has the detector's 5-sigma limit; at the edge it is flagged."""
    mask = np.zeros(SHAPE, np.int32)
    mask[80:120, 80:120] = int(MaskPlane.NO_DATA)
    x, y = np.array([100.0, 200.0, 3.0, 310.0, -40.0]), np.array([100.0, 200.0, 150.0, 150.0, 150.0])
    star = np.array([200.0]), np.array([200.0])
    made = products_of(5, 94, FOUND, 7, np.zeros(1), *star, mask)
    objects = objects_at(detector_wcs(94), x, y)
    rows = force_from_product(write_detector_products(tmp_path, made), objects)
    np.testing.assert_array_equal(rows["dia_object_id"], [1, 2, 3])
    np.testing.assert_array_equal(rows["psf_flux_flag"], [True, False, False])
    np.testing.assert_array_equal(rows["psf_flux_flag_edge"], [False, False, True])
    assert np.isnan(rows["psf_flux"][0]) and np.isnan(rows["science_flux"][0])
    assert rows["psf_flux_limit"][0] == np.float32(made.summary["psf_flux_limit"]) > 0
    np.testing.assert_allclose(rows["psf_flux_limit"][1:], 5 * rows["psf_flux_err"][1:], rtol=3e-7)  # float32


def test_product_without_difference_has_science_fluxes_alone(tmp_path):
    """A visit without a template still tells how bright the place was."""
    made = replace(products_of(5, 94, FOUND, 8, np.zeros(1), *np.full((2, 1), 150.0)), difference=None, summary={})
    rows = force_from_product(write_detector_products(tmp_path, made), objects_at(detector_wcs(94), [150.0], [150.0]))
    assert np.isnan(rows["psf_flux"][0]) and np.isfinite(rows["science_flux"][0]) and np.isnan(rows["psf_flux_limit"][0])


def test_product_without_wcs_is_refused(tmp_path):
    """No place on the sky, no photometry; the file is named."""
    made = products_of(5, 94, FOUND, 9, np.zeros(1), *np.full((2, 1), 150.0))
    path = write_detector_products(tmp_path, replace(made, visit_image=replace(made.visit_image, wcs=None)))
    with pytest.raises(InputError, match="has no WCS.*detector=094.h5"):
        force_from_product(path, objects_at(detector_wcs(94), [150.0], [150.0]))


@pytest.fixture
def stored(survey, tmp_path):
    """File of a database in which everything is new."""
    path = tmp_path / "prompt.duckdb"
    with open_database(path) as opened:
        publish(opened, survey.visits, survey.objects, ())
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["precover", *map(str, arguments)])


def test_command_tells_what_was_done(survey, stored):
    """Status 0 and one line; a second run has nothing to do."""
    result = invoke("--database", stored, "--products", survey.folder)
    assert result.exit_code == 0, result.output
    assert "242 of 242 new objects precovered: 726 forced sources on 6 products" in result.output
    assert "0 of 0 new objects" in invoke("--database", stored, "--products", survey.folder).output


def test_command_tells_products_that_failed(survey, stored, tmp_path):
    """Status 1, one error a product with file, visit and detector; the others are done."""
    folder = copy_products(survey, tmp_path)
    product_path(folder, 2, 95).unlink()
    result = invoke("--database", stored, "--products", folder)
    assert result.exit_code == 1 and "605 forced sources on 5 products" in result.output
    assert result.output.count("error:") == 1 and "visit 2, detector 95, file" in result.output


def test_command_makes_no_database(tmp_path):
    """A mistyped name is an error, not a new database without objects."""
    result = invoke("--database", tmp_path / "promt.duckdb", "--products", tmp_path)
    assert result.exit_code == 1 and "there is no such database" in result.output and "promt.duckdb" in result.output
    assert not list(tmp_path.iterdir())


def test_command_wants_a_folder_of_products(tmp_path):
    """A folder that is not there is a usage error."""
    result = invoke("--database", "prompt.duckdb", "--products", tmp_path / "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.output


def true_fluxes(forced, truth, reach_arcsec=5.0):
    """The true flux (nJy) at each row: a transient's own, zero where nothing else is near, NaN where it is not so simple."""
    flux = np.zeros(len(forced["ra"]))
    for visit in np.unique(forced["visit"]):
        rows, change = np.flatnonzero(forced["visit"] == visit), np.flatnonzero(truth["visit"] == visit)
        apart = separation_arcsec(forced["ra"][rows, None], forced["dec"][rows, None], truth["ra"][change], truth["dec"][change])
        near, number = change[apart.argmin(axis=1)], (apart < reach_arcsec).sum(axis=1)
        is_own = (apart.min(axis=1) < 0.9) & (truth["kind"][near] == "transient")
        alone = np.where(is_own & (number == 1), truth["difference_flux_njy"][near], np.nan)
        flux[rows] = np.where(number == 0, 0.0, alone)
    return flux


def separation_arcsec(ra, dec, ra_to, dec_to):
    return np.hypot((ra - ra_to) * np.cos(np.radians(dec)), dec - dec_to) * 3600.0


def test_a_run_and_its_precovery_agree_with_the_truth(small_survey, tmp_path):
    """From raws to precovered fluxes: each object has a row a visit, with its true flux, or none where it was not yet."""
    run = ["run", small_survey.science, "-c", CAMERA, "-o", tmp_path, "--executor", "local"]
    run += ["--calibrations", small_survey.calibrations, "--templates", small_survey.templates]
    looked_for = ["precover", "--database", tmp_path / "prompt.duckdb", "--products", tmp_path]
    counts = []
    for command in (run, looked_for):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
        with open_database(tmp_path / "prompt.duckdb", read_only=True) as opened:
            ids = np.union1d(*map(opened.claimed_objects, small_survey.visits))
            forced = opened.history(ids, 0.0)[1]
        counts.append(len(forced["ra"]))
    true = true_fluxes(forced, read_table(small_survey.root / "truth.h5", "changes"))
    known = np.isfinite(true)
    pull = (forced["psf_flux"] - true)[known] / forced["psf_flux_err"][known]
    assert counts[1] == 2 * len(ids) > counts[0]
    assert pull.size >= 12 and abs(pull.mean()) < 4 / np.sqrt(pull.size) and abs(pull).max() < 4
