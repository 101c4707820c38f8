"""DIAObject columns from histories: right numbers in the right columns, for every object, whatever the order of rows."""

import numpy as np
import pytest

from nightstream.engine.config import DiaObjectConfig
from nightstream.engine.dia_objects import summarize_objects
from nightstream.errors import InputError
from nightstream.io.apdb import DIA_OBJECT
from nightstream.io.schema import to_structured

BANDS = np.array(list("ugrizy"))
NOW = 60400.0
CONFIG = DiaObjectConfig()


def detections(rng, ids, rows=30, flux=None, noise=10.0):
    """DIASources of those objects within the last year: ``flux(time)`` plus noise, at fixed positions."""
    owner = np.repeat(ids, rows)
    n = len(owner)
    time = NOW - rng.uniform(0, 360, n)
    err = rng.uniform(0.5, 1.5, n) * noise
    level = 500.0 if flux is None else flux(time)
    table = {"dia_object_id": owner, "band": rng.choice(BANDS, n), "midpoint_mjd_tai": time}
    table |= {"psf_flux": level + rng.normal(0, err), "psf_flux_err": err}
    table |= {"ra": 10.0 + owner * 1e-3 + rng.normal(0, 1e-5, n), "dec": rng.normal(-30, 1e-5, n)}
    return table | {"ra_err": np.full(n, 1e-5), "dec_err": np.full(n, 1e-5), "ra_dec_cov": np.zeros(n)}


def forced_rows(rng, ids, rows=40):
    """Forced sources of those objects within the last year."""
    owner = np.repeat(ids, rows)
    n = len(owner)
    table = {"dia_object_id": owner, "band": rng.choice(BANDS, n), "midpoint_mjd_tai": NOW - rng.uniform(0, 360, n)}
    for name, level in (("psf", 100.0), ("science", 9000.0)):
        err = rng.uniform(5, 15, n)
        table |= {f"{name}_flux": level + rng.normal(0, err), f"{name}_flux_err": err}
    return table


def rows_of(table, chosen):
    return {name: column[chosen] for name, column in table.items()}


def one_band(times, fluxes, errs, band="g"):
    """Detections of object 1 in one band."""
    n = len(times)
    table = {"dia_object_id": np.ones(n, np.int64), "band": np.full(n, band), "midpoint_mjd_tai": np.asarray(times, float)}
    table |= {"psf_flux": np.asarray(fluxes, float), "psf_flux_err": np.asarray(errs, float)}
    return table | {name: np.full(n, 1e-5) for name in ("ra", "dec", "ra_err", "dec_err")}


def test_columns_are_the_schemas():
    """Every column of the schema, official and ours, and no other, with its dtype."""
    rng = np.random.default_rng(1)
    ids = np.arange(1, 6)
    table = summarize_objects(ids, detections(rng, ids), forced_rows(rng, ids), NOW, CONFIG)
    assert set(table) == {column.name for column in DIA_OBJECT.columns}
    assert {name: column.dtype.str for name, column in table.items()} == {c.name: c.dtype for c in DIA_OBJECT.columns}
    assert len(to_structured(table, DIA_OBJECT)) == 5


def test_statistics_stand_in_their_columns():
    """Of every object and band: NumPy's numbers for that object and band alone."""
    rng = np.random.default_rng(2)
    ids = np.array([3, 8, 2**60])
    sources, forced = detections(rng, ids), forced_rows(rng, ids)
    table = summarize_objects(ids, sources, forced, NOW, CONFIG)
    for k, number in enumerate(ids):
        assert table["dia_object_id"][k] == number and table["n_dia_sources"][k] == 30
        for band in BANDS:
            mine = (sources["dia_object_id"] == number) & (sources["band"] == band)
            f, e, t = (sources[name][mine] for name in ("psf_flux", "psf_flux_err", "midpoint_mjd_tai"))
            f, e, t = (a[np.argsort(t)] for a in (f, e, t))
            got = {name[11:]: column[k] for name, column in table.items() if name.startswith(f"{band}_psf_flux_")}
            mean = np.average(f, weights=e**-2)
            wanted = {"mean": mean, "mean_err": np.sum(e**-2) ** -0.5, "sigma": f.std(ddof=1), "ndata": len(f)}
            wanted |= {"min": f.min(), "max": f.max(), "err_mean": e.mean(), "chi2": np.sum(((f - mean) / e) ** 2)}
            wanted |= {"max_slope": np.max(np.diff(f) / np.diff(t)), "percentile25": np.percentile(f, 25)}
            wanted |= {"linear_slope": np.polyfit(t - NOW, f, 1, w=1 / e)[0]}
            for name, value in wanted.items():
                assert got[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name  # float32 columns
            mine = (forced["dia_object_id"] == number) & (forced["band"] == band)
            for column, name in (("fp", "psf"), ("science", "science")):
                f, e = forced[f"{name}_flux"][mine], forced[f"{name}_flux_err"][mine]
                assert table[f"{band}_{column}_flux_mean"][k] == pytest.approx(np.average(f, weights=e**-2), rel=1e-6)
                assert table[f"{band}_{column}_flux_mean_err"][k] == pytest.approx(np.sum(e**-2) ** -0.5, rel=1e-6)


def test_order_of_rows_does_not_matter():
    """Shuffled histories, with rows of equal time, give the same bits."""
    rng = np.random.default_rng(3)
    ids = np.arange(20)
    sources, forced = detections(rng, ids, flux=lambda t: 300 * np.sin(t)), forced_rows(rng, ids)
    sources["midpoint_mjd_tai"][::7] = forced["midpoint_mjd_tai"][::7] = NOW - 10
    first = summarize_objects(ids, sources, forced, NOW, CONFIG)
    mixed = (rows_of(table, rng.permutation(len(table["band"]))) for table in (sources, forced))
    second = summarize_objects(ids, *mixed, NOW, CONFIG)
    for name, column in first.items():
        np.testing.assert_array_equal(column, second[name], err_msg=name)


def test_each_object_is_summarized_alone():
    """Neighbours in the batch change nothing: one object alone has the bits it has among twenty."""
    rng = np.random.default_rng(4)
    ids = np.arange(20)
    sources, forced = detections(rng, ids, flux=lambda t: 300 * np.sin(t)), forced_rows(rng, ids)
    table = summarize_objects(ids, sources, forced, NOW, CONFIG)
    alone = summarize_objects(ids[7:8], sources, forced, NOW, CONFIG)
    for name, column in alone.items():
        np.testing.assert_array_equal(column, table[name][7:8], err_msg=name)


def test_only_the_last_year_counts():
    """Rows older than the history's length leave no trace."""
    sources = one_band([NOW - 366, NOW - 10, NOW], [1e6, 100.0, 104.0], [1.0, 1.0, 1.0])
    table = summarize_objects(np.array([1]), sources, {}, NOW, CONFIG)
    assert table["n_dia_sources"][0] == 2 and table["g_psf_flux_mean"][0] == 102.0
    assert table["first_dia_source_mjd_tai"][0] == NOW - 10 and table["last_dia_source_mjd_tai"][0] == NOW
    assert table["validity_start_mjd_tai"][0] == NOW and np.isnan(table["validity_end_mjd_tai"][0])


def test_unusable_fluxes_are_left_out():
    """NaN, masked and errorless fluxes and unknown bands count as detections, not as fluxes."""
    sources = one_band([NOW - 5, NOW - 4, NOW - 3, NOW - 2, NOW - 1], [10.0, np.nan, 30.0, 50.0, 70.0], [1.0, 1.0, 1.0, 0.0, 1.0])
    sources["psf_flux"] = np.ma.MaskedArray(sources["psf_flux"], mask=[0, 0, 0, 0, 1])
    sources["band"][2] = "w"
    table = summarize_objects(np.array([1]), sources, {}, NOW, CONFIG)
    assert table["n_dia_sources"][0] == 5 and table["g_psf_flux_ndata"][0] == 1 and table["g_psf_flux_mean"][0] == 10.0
    assert np.isnan(table["g_psf_flux_sigma"][0]) and table["r_psf_flux_ndata"][0] == 0


def test_new_object_of_one_detection():
    """A first detection: its flux, position and errors; nothing that needs two; no warning."""
    table = summarize_objects(np.array([1]), one_band([NOW], [42.0], [3.0], "z"), {}, NOW, CONFIG)
    got = {name: column[0] for name, column in table.items()}
    assert got["z_psf_flux_mean"] == got["z_psf_flux_min"] == got["z_psf_flux_percentile95"] == 42.0
    assert got["z_psf_flux_mean_err"] == 3.0 and got["ra"] == pytest.approx(1e-5, abs=1e-13)
    floor = np.hypot(1e-5, CONFIG.position_floor_arcsec / 3600)
    assert got["ra_err"] == pytest.approx(floor, rel=1e-6) and got["radec_mjd_tai"] == NOW
    for name in ("z_psf_flux_sigma", "z_psf_flux_max_slope", "z_psf_flux_stetson_j", "z_fp_flux_mean", "pm_ra", "period"):
        assert np.isnan(got[name]), name


def test_objects_without_detections_are_empty():
    """No rows at all, and no objects at all."""
    table = summarize_objects(np.array([1, 2]), {}, {}, NOW, CONFIG)
    assert (table["n_dia_sources"] == 0).all() and np.isnan(table["ra"]).all()
    sources = one_band([NOW], [42.0], [3.0])
    table = summarize_objects(np.zeros(0, np.int64), sources, {}, NOW, CONFIG)
    assert all(len(column) == 0 for column in table.values())


def test_missing_position_errors_fall_back():
    """Detections without errors weigh as the fallback says, and a wild covariance is not believed."""
    sources = one_band([NOW - 1, NOW], [42.0, 43.0], [3.0, 3.0])
    sources["ra_err"], sources["ra_dec_cov"] = np.full(2, np.nan), np.full(2, 1.0)
    table = summarize_objects(np.array([1]), sources, {}, NOW, CONFIG)
    expected = np.hypot(CONFIG.missing_error_arcsec, CONFIG.position_floor_arcsec) / 3600 / np.sqrt(2)
    assert table["ra_err"][0] == pytest.approx(expected, rel=1e-6) and table["ra_dec_cov"][0] == 0


def test_periodic_object_has_its_period_and_a_constant_one_none():
    """Sixty detections of a wave of 10 days in six bands; noise about a level is not searched."""
    rng = np.random.default_rng(5)
    wave = detections(rng, np.array([1]), rows=60, flux=lambda t: 100 * np.cos(2 * np.pi * (t - NOW) / 10))
    still = detections(rng, np.array([2]), rows=60)
    both = {name: np.concatenate([wave[name], still[name]]) for name in wave}
    table = summarize_objects(np.array([1, 2]), both, {}, NOW, CONFIG)
    assert table["period"][0] == pytest.approx(10, abs=0.04) and table["period_fap"][0] < 1e-3
    assert table["period_power"][0] > 0.95 and np.isnan(table["period"][1])
    first = table["first_dia_source_mjd_tai"][0]
    for band in BANDS:
        if np.isfinite(table[f"{band}_psf_flux_period_amplitude"][0]):
            # about 10 points of noise 10 and 3 free parameters: sigma sqrt(2 / n) = 4.5
            assert table[f"{band}_psf_flux_period_amplitude"][0] == pytest.approx(100, abs=5 * 4.5 * 1.5)
            off = table[f"{band}_psf_flux_period_phase"][0] - (NOW - first) / 10
            assert abs((off + 0.5) % 1 - 0.5) < 0.1


def test_periods_may_come_from_forced_fluxes():
    """By configuration the forced fluxes are searched instead."""
    rng = np.random.default_rng(6)
    ids = np.array([1])
    forced = forced_rows(rng, ids, rows=90)
    forced["psf_flux"] += 200 * np.sin(2 * np.pi * forced["midpoint_mjd_tai"] / 7)
    config = CONFIG.model_copy(update={"period_flux": "forced_sources"})
    table = summarize_objects(ids, detections(rng, ids), forced, NOW, config)
    assert table["period"][0] == pytest.approx(7, abs=0.03)


def test_forced_fluxes_alone_make_no_period():
    """Forced rows of an object without detections: means, but no period, as nothing says from when its phase counts."""
    config = CONFIG.model_copy(update={"period_flux": "forced_sources"})
    forced = forced_rows(np.random.default_rng(8), np.array([1]), rows=60)
    forced["psf_flux"] += 200 * np.sin(forced["midpoint_mjd_tai"])
    table = summarize_objects(np.array([1]), {}, forced, NOW, config)
    assert np.isfinite(table["g_fp_flux_mean"][0]) and np.isnan(table["period"][0]) and np.isnan(table["period_fap"][0])


def test_one_night_has_no_period():
    """Many fluxes at one time, or within a period's length, leave no frequency to try."""
    rng = np.random.default_rng(9)
    for time in (np.full(20, NOW), NOW - rng.uniform(0, 0.2, 20)):
        sources = one_band(time, rng.normal(0, 100, 20), np.ones(20))
        assert np.isnan(summarize_objects(np.array([1]), sources, {}, NOW, CONFIG)["period"][0])


def test_moving_object_has_its_motion():
    """A star of 300 mas/yr: its motion within 5 sigma, and the epoch of its position told."""
    rng = np.random.default_rng(7)
    ids = np.array([1])
    sources = detections(rng, ids, rows=40)
    sources["dec"] = sources["dec"] + 300 / 3.6e6 * (sources["midpoint_mjd_tai"] - NOW) / 365.25
    table = summarize_objects(ids, sources, {}, NOW, CONFIG)
    assert abs(table["pm_dec"][0] - 300) < 5 * table["pm_dec_err"][0] < 300
    assert abs(table["parallax"][0]) < 5 * table["parallax_err"][0] and table["pm_parallax_ndata"][0] == 40
    assert NOW - 360 < table["radec_mjd_tai"][0] < NOW


def test_wrong_input_is_told():
    """Ids out of order, and missing columns, by name."""
    sources = one_band([NOW], [42.0], [3.0])
    with pytest.raises(InputError, match="ascend"):
        summarize_objects(np.array([2, 1]), sources, {}, NOW, CONFIG)
    del sources["dec_err"]
    with pytest.raises(InputError, match="dec_err"):
        summarize_objects(np.array([1]), sources, {}, NOW, CONFIG)
