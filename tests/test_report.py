"""Reports: matching with the truth counts what it should, and pictures show what they are given."""

import io

import numpy as np
import pytest

from nightstream.engine.values import Calibrations, DetectorProducts, Exposure, ExposureInfo, MaskedImage, Template
from nightstream.errors import InputError
from nightstream.io.calibrations import write_calibrations
from nightstream.io.products import write_detector_products, write_visit_master
from nightstream.io.templates import write_template
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs
from nightstream.report.evaluate import concatenate, evaluate, is_reliable
from nightstream.report.quicklook import save_quicklook
from nightstream.report.stretch import asinh_stretch, level_and_noise
from nightstream.report.tables import accuracy_table, visit_table
from nightstream.scheduler.events import FrameStatus
from nightstream.scheduler.run import VisitSummary
from nightstream.simulate.psf import MoffatPsf
from nightstream.simulate.scene import draw_points

SHAPE = (300, 320)
NOISE = 30.0


def changes(**columns):
    """Clean transients of visit 1, detector 0; any column can be given."""
    count = len(columns["x"])
    table = {
        "kind": np.full(count, "transient"), "id": np.arange(count), "is_clean": np.ones(count, bool),
        "visit": np.full(count, 1), "detector": np.zeros(count, int), "difference_flux_njy": np.full(count, 1000.0),
        "snr": np.full(count, 10.0),
    }  # fmt: skip
    return {name: np.asarray(values) for name, values in (table | columns).items()}


def sources(**columns):
    count = len(columns["x"])
    table = {
        "visit": np.full(count, 1), "detector": np.zeros(count, int), "snr": np.full(count, 10.0),
        "psf_flux": np.full(count, 1000.0), "psf_flux_err": np.full(count, 100.0), "is_dipole": np.zeros(count, bool),
    }  # fmt: skip
    return {name: np.asarray(values) for name, values in (table | columns).items()}


def test_sources_within_reach_are_true_and_the_rest_false():
    """A source 1 pixel off its transient counts, one 10 pixels off is a false positive, a missed transient is missed."""
    result = evaluate(sources(x=[11.0, 60.0], y=[10.0, 50.0]), changes(x=[10.0, 100.0], y=[10.0, 100.0]))
    assert result.completeness(5.0) == 0.5
    assert result.false_positives().tolist() == [1]
    score = result.score(1)
    assert (score.n_sources, score.n_transients, score.n_recovered, score.n_false) == (2, 2, 1, 1)


def test_negative_variables_and_asteroids_are_true():
    """Anything that changed is no false positive, but only transients count for completeness."""
    truth = changes(x=[10.0, 50.0], y=[10.0, 50.0], kind=["variable", "asteroid"], snr=[-30.0, 90.0])
    result = evaluate(sources(x=[10.0, 56.0], y=[10.0, 50.0]), truth)
    assert len(result.false_positives()) == 0
    assert np.isnan(result.completeness(5.0))


def test_flagged_sources_neither_recover_nor_count_against():
    """A source flagged as a dipole is not offered: its transient is missed, and far from one it is no false positive."""
    result = evaluate(sources(x=[10.0, 60.0], y=[10.0, 60.0], is_dipole=[True, True]), changes(x=[10.0], y=[10.0]))
    assert result.completeness(5.0) == 0.0
    assert len(result.false_positives()) == 0
    assert is_reliable(result.sources).sum() == 0


def test_other_visits_and_detectors_do_not_match():
    """The same pixel in another visit or detector is another place."""
    truth = changes(x=[10.0, 10.0], y=[10.0, 10.0], visit=[1, 2], detector=[0, 1])
    result = evaluate(sources(x=[10.0], y=[10.0], visit=[2], detector=[0]), truth)
    assert result.completeness(5.0) == 0.0
    assert len(result.false_positives()) == 1


def test_the_brightest_source_at_a_transient_is_its_source():
    """Of two detections of one transient the brighter one gives the flux; the other is no false positive."""
    found = sources(x=[10.0, 11.0], y=[10.0, 11.0], snr=[30.0, 6.0], psf_flux=[1200.0, 1.0])
    result = evaluate(found, changes(x=[10.0], y=[10.0]))
    assert result.changes["source"].tolist() == [0]
    assert result.flux_pulls() == pytest.approx([2.0])
    assert len(result.false_positives()) == 0


def test_nothing_found_is_an_answer():
    """No sources at all: completeness 0, no false positives, no pulls."""
    result = evaluate(sources(x=[], y=[]), changes(x=[10.0], y=[10.0]))
    assert (result.completeness(5.0), len(result.false_positives()), len(result.flux_pulls())) == (0.0, 0, 0)


def test_concatenate_skips_empty_tables():
    """Tables without rows, or without columns, add nothing."""
    joined = concatenate([{}, {"x": np.array([]), "y": np.array([])}, {"x": np.array([1.0]), "z": np.array([2.0])}])
    assert joined["x"].tolist() == [1.0]
    assert concatenate([{}]) == {}


def test_level_and_noise_of_a_gaussian():
    """Median and MAD recover mean and sigma; NaN and a few bright pixels do not matter."""
    rng = np.random.default_rng(1)
    image = rng.normal(5.0, 2.0, (200, 200))
    image[:2], image[5, 5] = np.nan, 1e9
    level, noise = level_and_noise(image)
    # the median's error is 1.25 sigma/sqrt(N), the MAD's relative error 1.17/sqrt(N)
    assert level == pytest.approx(5.0, abs=5 * 1.25 * 2.0 / 200)
    assert noise == pytest.approx(2.0, rel=5 * 1.17 / 200)


def test_stretch_is_monotone_between_zero_and_one():
    """More light is never drawn lighter."""
    grey = asinh_stretch(np.linspace(-100.0, 1e5, 1000), 0.0, 10.0, 5e4)
    assert (np.diff(grey) >= 0).all()
    assert (grey.min(), grey.max()) == (0.0, 1.0)


def make_scene(seed=3):
    """Return (visit image, difference, template, transients) of one small exposure with an ideal difference."""
    rng = np.random.default_rng(seed)
    info = ExposureInfo(visit=20270120001, detector=0, camera="simulator", kind="science", band="r", exposure_time_s=30.0,
                        dark_time_s=32.0, midpoint_mjd_tai=61425.2)  # fmt: skip
    terms = (0.0, 0.0, 0.0, 0.0)
    psf = MoffatPsf(fwhm_pix=4.2, origin=(0.0, 0.0), radius_pix=500.0, fwhm_terms=terms, e1_terms=terms, e2_terms=terms)
    count = 40
    table = {name: np.zeros(count) for name in ("trail_x", "trail_y")}
    table |= {"x": rng.uniform(0, 320, count), "y": rng.uniform(0, 300, count), "electrons": 10 ** rng.uniform(3, 5.5, count)}
    new = {"x": np.array([60.0, 150.0, 240.0]), "y": np.array([200.0, 90.0, 160.0]), "electrons": np.array([3e4, 8e3, 2e3])}
    static, flash, old = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros((320, 340))
    draw_points(static, table, psf, NOISE)
    draw_points(flash, new | {name: np.zeros(3) for name in ("trail_x", "trail_y")}, psf, NOISE)
    draw_points(old, table | {"x": table["x"] + 7.3, "y": table["y"] + 4.6}, psf, NOISE)
    wcs, shifted = Wcs.tan(150.0, 2.0, 160.0, 150.0, 0.2), Wcs.tan(150.0, 2.0, 167.3, 154.6, 0.2)
    mask = np.where(static > 8e3, int(MaskPlane.SAT), 0).astype(np.int32)
    mask[:, 40], mask[100:110, 200] = int(MaskPlane.BAD), int(MaskPlane.CR)
    mask[flash > 60] |= int(MaskPlane.DETECTED)

    def planes(image, noise, flags):
        noisy = (image + rng.normal(0.0, noise, image.shape)).astype(np.float32)
        return MaskedImage(noisy, flags, np.full(image.shape, noise**2, np.float32))

    model = PsfModel.gaussian(1.8)
    science = planes(static + flash, NOISE, mask)
    difference = planes(flash, 1.2 * NOISE, mask)
    visit_image = Exposure(info=info, pixels=science, wcs=wcs, psf=model, njy_per_unit=0.5)
    template = Template(
        id="t", band="r", pixels=planes(0.5 * old, 0.25 * NOISE, np.zeros(old.shape, np.int32)), wcs=shifted, psf=model,
        noise_correlation=np.ones((1, 1), np.float32), stars={"x": np.zeros(0)},
    )  # fmt: skip
    change = Exposure(info=info, pixels=difference, wcs=wcs, psf=model, njy_per_unit=0.5)
    return visit_image, change, template, new


def test_quicklook_is_drawn_from_a_product_file(tmp_path):
    """The picture of a product on disk has a panel for image, mask and difference."""
    visit_image, difference, _, new = make_scene()
    found = sources(x=new["x"], y=new["y"])
    products = DetectorProducts(
        visit_image=visit_image, difference=difference, dia_sources={k: found[k] for k in ("x", "y", "snr", "is_dipole")},
        forced_sources={}, summary={}, timings_s={}, provenance={},
    )  # fmt: skip
    path = write_detector_products(tmp_path, products)
    assert save_quicklook(path, tmp_path / "look.png").stat().st_size > 10_000


def test_quicklook_draws_templates_and_calibrations(tmp_path):
    """Every image file of the project can be looked at; a visit's master is refused, saying what was wanted."""
    visit_image, _, template, _ = make_scene()
    paths = [
        write_template(tmp_path, 0, template),
        write_calibrations(tmp_path, "simulator", Calibrations(detector=0, flat=visit_image.pixels)),
    ]
    for path in paths:
        assert save_quicklook(path, tmp_path / "look.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="holds visit, wanted detector products or template"):
        save_quicklook(write_visit_master(tmp_path, 1, []), tmp_path / "no.png")


def text_of(table) -> str:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_tell_seconds_sources_and_recoveries():
    """One row a visit with its stages; what failed is named."""
    result = evaluate(sources(x=[11.0, 60.0], y=[10.0, 50.0]), changes(x=[10.0, 100.0], y=[10.0, 100.0]))
    frames = (FrameStatus(detector=0, path="a", status="done", attempts=1, latency_s=1.0),)
    visit = VisitSummary(visit=1, frames=frames, seconds=2.5, counts={}, timings_s={"isr": 0.25}, output_bytes=1)
    text = text_of(visit_table([visit], {1: result.score(1)}))
    assert "0.25" in text
    assert "1 of 2" in text
    assert "1 of 2 (50.0%)" in text_of(accuracy_table(result))
