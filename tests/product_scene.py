"""Small engine values, different in every field, for the tests of files."""

import numpy as np

from nightstream.engine.values import (
    Calibrations,
    Cutouts,
    DetectorProducts,
    Exposure,
    ExposureInfo,
    MaskedImage,
    StampSet,
    Template,
)
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

SHAPE = (300, 517)  # neither a multiple of the chunks nor square


def make_pixels(seed, shape=SHAPE, level=200.0):
    """Return noise of ``level`` electrons, some masked pixels, some NaN."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.0, np.sqrt(level), shape).astype(np.float32)
    mask = (rng.random(shape) < 0.01).astype(np.int32) << rng.integers(0, 14, shape).astype(np.int32)
    variance = rng.normal(level, 1.0, shape).astype(np.float32)
    image[:2, :3] = variance[:2, :3] = np.nan
    return MaskedImage(image, mask, variance)


def make_wcs():
    """Return a SIP, so that distortion is exercised."""
    plain = Wcs.tan(151.3, -1.25, 255.17, 149.75, 0.2003, angle_deg=12.0)
    terms = (((2, 0, 0, 1.5e-6), (1, 1, 0, -2e-6)), ((0, 2, 0, 1e-6), (0, 3, 0, 1e-9)))
    return Wcs(plain.crval, plain.crpix, plain.cd, "SIP", terms)


def make_psf(seed=5):
    """Return a PSF that varies linearly."""
    rng = np.random.default_rng(seed)
    return PsfModel(rng.random((3, 11, 11)), order=1, x_centre=258.0, y_centre=149.5, x_scale=258.5, y_scale=150.0)


def make_exposure(seed, detector=7):
    """Return an exposure with everything set."""
    header = "OBJECT  = 'a field'           / what\nEXPTIME =                 15.0\nCRVAL1  =                 10.0"
    info = ExposureInfo(
        visit=2026112200123,
        detector=detector,
        camera="test",
        kind="science",
        band="g",
        exposure_time_s=15.0,
        dark_time_s=15.9,
        midpoint_mjd_tai=61000.12345678901,
        path="/data/raw.fits",
        header=header,
    )
    return Exposure(info=info, pixels=make_pixels(seed), wcs=make_wcs(), psf=make_psf(), njy_per_unit=12.3456789)


def make_cutouts(n=4):
    """Return stamps of different sizes, some over the border."""
    rng = np.random.default_rng(6)
    size = np.arange(30, 30 + n, dtype=np.int32)
    n_pixels = int((size.astype(int) ** 2).sum())

    def stamp_set():
        pixels = rng.normal(0.0, 30.0, n_pixels).astype(np.float32)
        pixels[:40] = np.nan
        mask = (rng.random(n_pixels) < 0.05).astype(np.int32) << 5
        return StampSet(pixels, mask, rng.random(n_pixels).astype(np.float32), rng.random((n, 11, 11)).astype(np.float32))

    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    box = {"size": size, "x0": np.rint(x).astype(np.int32) - size // 2, "y0": np.rint(y).astype(np.int32) - size // 2}
    sets = {kind: stamp_set() for kind in ("difference", "science", "template")}
    return Cutouts(**box, x=x, y=y, **sets)


def make_products(detector=7):
    """Return products with two tables."""
    rng = np.random.default_rng(3)
    sources = {
        "dia_source_id": np.arange(4, dtype=np.int64) + 2**60,
        "visit": np.full(4, 2026112200123, np.int64),
        "detector": np.full(4, detector, np.int16),
        "band": np.full(4, "g"),
        "ra": rng.random(4),
        "dec": rng.random(4),
        "psf_flux": rng.random(4).astype(np.float32),
        "is_dipole": np.array([True, False, False, True]),
        "pixel_flags_cr_center": np.array([False, False, True, True]),
        "star_residual": np.array([False, True, False, True]),
    }
    forced = {"dia_object_id": np.arange(2, dtype=np.int64), "psf_flux": np.array([1.5, np.nan], np.float32)}
    return DetectorProducts(
        visit_image=make_exposure(1, detector),
        difference=make_exposure(2, detector),
        dia_sources=sources,
        forced_sources=forced,
        summary={"psf_fwhm_pix": 4.25, "n_stars": 31.0, "sky_noise": float("nan")},
        timings_s={"isr": 0.25, "characterize": 1.5},
        provenance={"config": '{"isr": {}}', "template": "t-1"},
        cutouts=make_cutouts(),
    )


def make_calibrations(detector=7, shape=SHAPE):
    """Return calibrations with every plane but the dark."""
    defects = np.zeros(shape, np.int32)
    defects[3:5, 100] = 1
    return Calibrations(
        detector=detector,
        bias=make_pixels(11, shape),
        flat=make_pixels(12, shape),
        defects=defects,
        provenance={"bias": "5 frames"},
    )


def make_template(band="g"):
    """Return a template with stars."""
    rng = np.random.default_rng(8)
    stars = {name: rng.random(5) for name in ("x", "y", "ra", "dec", "psf_flux", "psf_flux_err")}
    return Template(
        id="field-1/g",
        band=band,
        pixels=make_pixels(21),
        wcs=make_wcs(),
        psf=make_psf(),
        noise_correlation=rng.random((9, 9)),
        stars=stars,
        provenance={"visits": "1 2 3"},
    )


def assert_same(a, b):
    """Assert that two values are the same to the last bit, whatever they are made of."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_same(getattr(a, name), getattr(b, name))
    else:
        np.testing.assert_equal(a, b)
