"""Two fields of real raw CCD frames, from bias to difference image."""

import numpy as np
import pytest
from efosc2 import CONFIG, DITHERS, FIELDS, calibrated, calibrations, detector, inject, pipeline_for, raws
from realdata import real_data
from scipy import ndimage
from scipy.spatial import cKDTree

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.characterize import is_calibration_star
from nightstream.engine.isr import remove_signature
from nightstream.io.products import read_detector_products, read_visit_status
from nightstream.kernels.mask import MaskPlane

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def data():
    return real_data("efosc2_raw")


def binned_median(image, mask, bin_pix=64):
    """Medians of the usable pixels in bins of ``bin_pix``, over the whole bins of the frame."""
    usable = np.where(mask & int(MaskPlane.unusable() | MaskPlane.DETECTED), np.nan, image)
    ny, nx = (n // bin_pix for n in image.shape)
    bins = usable[: ny * bin_pix, : nx * bin_pix].reshape(ny, bin_pix, nx, bin_pix)
    return np.nanmedian(bins, axis=(1, 3))


@pytest.mark.parametrize("left_out", DITHERS)
def test_a_sky_flat_is_flattened_by_the_others(data, left_out):
    """A sky flat that took no part in the master is uniform to 2 % over the frame after division by it."""
    flats = raws(data / "skyflat_g")
    others = [flat for number, flat in enumerate(flats) if number != left_out]
    made = build_calibrations(raws(data / "bias"), (), others, detector(), CONFIG.calibrate, CONFIG.isr)
    pixels = remove_signature(flats[left_out], detector(), made, CONFIG.isr)
    level = binned_median(pixels.image, pixels.mask)
    assert np.abs(level / np.median(level) - 1).max() < 0.02


@pytest.mark.parametrize("dither", DITHERS)
@pytest.mark.parametrize("field", FIELDS)
def test_the_night_sky_is_flat(data, field, dither):
    """After calibration the sky of each science frame varies by 2 % (standard deviation of bins) over the frame.

    Two opposite corners stay 3 to 4 % low, in both fields: the twilight of the flats falls into the camera differently.
    """
    pixels = remove_signature(raws(data / field)[dither], detector(), calibrations(data), CONFIG.isr)
    sources = calibrated(data, field)[dither].exposure.pixels.mask & int(MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE)
    level = binned_median(pixels.image, pixels.mask | sources)
    assert np.nanstd(level / np.nanmedian(level)) < 0.02


def pair_magnitudes(data, field):
    """Magnitude differences of bright clean stars between each two of the three dithers."""
    done = calibrated(data, field)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        a, b = (
            {name: column[is_calibration_star(visit.stars, 50)] for name, column in visit.stars.items()}
            for visit in (done[first], done[second])
        )
        x, y = done[first].exposure.wcs.pixel_from_sky(b["ra"], b["dec"])
        distance, index = cKDTree(np.c_[a["x"], a["y"]]).query(np.c_[x, y])
        near = distance < 1.5
        scale = done[second].exposure.njy_per_unit / done[first].exposure.njy_per_unit
        yield 2.5 * np.log10(b["psf_flux"][near] * scale / a["psf_flux"][index[near]])


@pytest.mark.parametrize("field", FIELDS)
def test_bright_stars_repeat_between_dithers(data, field):
    """Magnitudes of stars of S/N above 50 differ from dither to dither by at most 0.012 mag (robust scatter)."""
    change = np.concatenate([d - np.median(d) for d in pair_magnitudes(data, field)])
    assert len(change) >= 30
    assert 1.4826 * np.median(np.abs(change)) <= 0.012


@pytest.mark.parametrize("science", DITHERS)
@pytest.mark.parametrize("field", FIELDS)
def test_blank_sky_of_the_difference_is_as_noisy_as_its_variance_says(data, field, science):
    """Pulls of blank-sky pixels have width 1.00 +- 0.05, and neighbours correlate by less than 0.06."""
    products = pipeline_for(data, field, science).process(raws(data / field)[science])
    pixels, visit = products.difference.pixels, products.visit_image.pixels
    sources = visit.mask & int(MaskPlane.DETECTED) != 0
    blank = ((pixels.mask & int(MaskPlane.unusable())) == 0) & ~ndimage.binary_dilation(sources, iterations=8)
    pull = np.where(blank, pixels.image / np.sqrt(pixels.variance), np.nan)
    assert np.nanstd(pull) == pytest.approx(1.00, abs=0.05)
    for neighbours in (pull[:, 1:] * pull[:, :-1], pull[1:] * pull[:-1]):
        assert abs(np.nanmean(neighbours) / np.nanvar(pull)) < 0.06


@pytest.fixture(scope="module")
def injected(data):
    """True flux, error, and what was found of stars injected at random places into every raw science frame."""
    results = [recover(data, field, science) for field in FIELDS for science in DITHERS]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def recover(data, field, science, n_sources=60):
    """Inject stars of S/N 4 to 60 into one raw frame and look for them among its DIASources."""
    rng = np.random.default_rng(science + 10 * FIELDS.index(field))
    pipeline, raw = pipeline_for(data, field, science), raws(data / field)[science]
    x, y = separate_positions(rng, n_sources)
    clean = pipeline.calibrate(raw).exposure
    before = measure_at(pipeline, raw, clean, x, y)
    usable = ~before["flag"]
    x, y, error = x[usable], y[usable], before["flux_err"][usable]
    electrons = error / clean.njy_per_unit * 10 ** rng.uniform(np.log10(4), np.log10(60), len(x))
    stars = inject(raw, clean, pipeline.calibrations.flat.image, x, y, electrons, seed=science)
    products = pipeline.process(stars, positions(clean, x, y))
    found = products.dia_sources
    truth = electrons * clean.njy_per_unit
    distance, _ = cKDTree(np.c_[found["x"], found["y"]]).query(np.c_[x, y])
    flux, flux_err = (forced_at_positions(products, name) for name in ("psf_flux", "psf_flux_err"))
    return {"snr": truth / error, "found": distance < 2.0, "pull": (flux - truth) / flux_err}


def separate_positions(rng, n_sources, distance_pix=30):
    """Random places on the detector, none closer to another than ``distance_pix``: the test is not about blends."""
    ny, nx = detector().shape
    chosen = []
    while len(chosen) < n_sources:
        place = rng.uniform(20, nx - 20), rng.uniform(20, ny - 20)
        if all(np.hypot(place[0] - x, place[1] - y) > distance_pix for x, y in chosen):
            chosen.append(place)
    return np.array(chosen).T


def positions(exposure, x, y):
    ra, dec = exposure.wcs.sky_from_pixel(x, y)
    return {"ra": ra, "dec": dec, "dia_object_id": np.arange(1, len(x) + 1)}


def forced_at_positions(products, name):
    """A forced column in the order of `positions`, without the rows at DIASources."""
    ids = products.forced_sources["dia_object_id"]
    return products.forced_sources[name][ids != 0][np.argsort(ids[ids != 0])]


def measure_at(pipeline, raw, exposure, x, y):
    """Forced flux error on the difference without injection, and whether a pixel there is unusable."""
    products = pipeline.process(raw, positions(exposure, x, y))
    mask = products.difference.pixels.mask[np.rint(y).astype(int), np.rint(x).astype(int)]
    flag = (mask & int(MaskPlane.unusable())) != 0
    return {"flux_err": forced_at_positions(products, "psf_flux_err"), "flag": flag}


def test_injected_stars_are_recovered(injected):
    """At least 95 % of the stars above S/N 7 that were put on usable raw pixels are found within 2 pixels."""
    bright = injected["snr"] > 7
    assert bright.sum() > 150
    assert injected["found"][bright].mean() >= 0.95


def test_injected_fluxes_are_unbiased(injected):
    """Flux pulls of the injected stars are N(0, 1): mean within 0.15, width within 0.15."""
    pull = injected["pull"][np.isfinite(injected["pull"])]
    assert len(pull) > 200
    assert abs(np.mean(pull)) <= 0.15
    assert np.std(pull) == pytest.approx(1.0, abs=0.15)


@pytest.fixture(scope="module")
def run_products(data, tmp_path_factory):
    """All six science frames from raw files to HDF5 through the command line; a folder of products for each field."""
    work = tmp_path_factory.mktemp("efosc2")
    command_line("calibrate", data / "bias", data / "skyflat_g", "--output", work / "calibrations")
    for field in FIELDS:
        frames = sorted((data / field).glob("*.fits.fz"))
        stores = "--calibrations", work / "calibrations", "--templates", work / field / "templates"
        command_line("template", *frames[:2], *stores[:2], "--output", stores[3])
        command_line("run", *frames, *stores, "--executor", "local", "--output", work / field / "products")
    return {field: work / field / "products" for field in FIELDS}


def command_line(command, *arguments):
    """Run `nightstream COMMAND ... --camera efosc2`, which must succeed."""
    from typer.testing import CliRunner

    from nightstream.cli import app

    done = CliRunner().invoke(app, [command, *map(str, arguments), "--camera", "efosc2"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("field", FIELDS)
def test_all_science_frames_go_through_run(run_products, field):
    """Three visits each leave a product with a difference and sources, and a master that says done."""
    visits = sorted(run_products[field].glob("visit=*"))
    assert len(visits) == 3
    for visit in visits:
        (status,) = read_visit_status(visit / "visit.h5")
        products = read_detector_products(visit / "detector=000.h5")
        assert status["status"] == "done" and products.difference is not None
        assert products.summary["n_matched_stars"] >= CONFIG.characterize.min_matches
