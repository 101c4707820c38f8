"""Templates: fluxes of the sky in nJy, artefacts gone, noise and PSF known."""

import numpy as np
import pytest
from skyscene import make_exposure, star_field

from nightstream.engine.config import TemplateConfig
from nightstream.engine.template import build_template, padded_grid
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane

CONFIG = TemplateConfig(padding_pix=16)
STARS = star_field()


def exposures(n=3, **options):
    moves = [(0, 0, 0), (3.3, -2.7, 0.5), (-4.2, 5.1, -0.4), (1.5, 1.5, 0.2)]
    scales = [1.0, 0.8, 1.25, 1.0]
    return [
        make_exposure(STARS, dx=dx, dy=dy, angle=a, scale=s, seed=10 + i, visit=i, **options)
        for i, ((dx, dy, a), s) in enumerate(zip(moves[:n], scales[:n], strict=True))
    ]


@pytest.fixture(scope="module")
def template():
    """Three dithered, rotated and dimmed exposures of one field."""
    return build_template(exposures(), CONFIG)


def test_stars_come_out_with_their_flux_and_place(template):
    """Fluxes in nJy have pulls of width 1 about the truth although every exposure had its own scale."""
    from scipy.spatial import cKDTree

    centre = (template.pixels.shape[1] - 1) / 2, (template.pixels.shape[0] - 1) / 2
    truth = np.c_[STARS[0] + centre[0], STARS[1] + centre[1]]
    distance, match = cKDTree(truth).query(np.c_[template.stars["x"], template.stars["y"]])
    near = distance < 1
    lone = cKDTree(truth).query(truth[match[near]], k=2)[0][:, 1] > 14
    flux, err = template.stars["psf_flux"][near][lone], template.stars["psf_flux_err"][near][lone]
    wanted = STARS[2][match[near]][lone]
    assert lone.sum() >= 15
    assert np.median(flux / wanted) == pytest.approx(1, abs=0.01)
    assert np.median(np.abs(flux - wanted) / np.hypot(err, 0.01 * wanted)) < 1.5
    assert np.median(distance[near][lone]) < 0.1


def test_noise_is_what_the_variance_plane_and_the_correlation_stamp_say(template):
    """On empty sky the scatter is the variance plane's within 5 %, and lag 1 matches the stamp."""
    sky = blank_sky(template)
    pull = np.where(sky, template.pixels.image / np.sqrt(template.pixels.variance), np.nan)
    assert np.nanstd(pull) == pytest.approx(1, abs=0.05)  # 5 sqrt(1 / (2 * 20000 / 4)) = 0.05
    lag = np.nanmean(pull[:, 1:] * pull[:, :-1]) / np.nanmean(pull**2)
    half = template.noise_correlation.shape[0] // 2
    assert lag == pytest.approx(template.noise_correlation[half, half + 1], abs=0.05)


def blank_sky(template):
    model = np.zeros(template.pixels.shape)
    for x, y in zip(template.stars["x"], template.stars["y"], strict=True):
        yy, xx = np.ogrid[: model.shape[0], : model.shape[1]]
        model[(yy - y) ** 2 + (xx - x) ** 2 < 14**2] = 1
    margin = np.zeros_like(model, bool)
    margin[30:-30, 30:-30] = True
    return margin & (model == 0) & np.isfinite(template.pixels.image) & (template.pixels.image < 60)


def test_an_artefact_in_one_of_three_exposures_vanishes():
    """A streak of 100 sigma in one exposure leaves nothing above 5 sigma in the template."""
    shots = exposures()
    shots[1].pixels.image[100, 60:200] += 2000
    template = build_template(shots, CONFIG)
    clean = build_template(exposures(), CONFIG)
    change = (template.pixels.image - clean.pixels.image) / np.sqrt(clean.pixels.variance)
    assert np.nanmax(np.abs(change)) < 5


def test_uncovered_pixels_have_no_data_and_nothing_leaks(template):
    """Outside all exposures NaN with NO_DATA; NaN nowhere else."""
    pixels = template.pixels
    lost = (pixels.mask & MaskPlane.NO_DATA) != 0
    assert lost[0, 0] and lost.mean() < 0.4
    np.testing.assert_array_equal(np.isnan(pixels.image), lost)
    np.testing.assert_array_equal(np.isnan(pixels.variance), lost)


def test_a_star_saturated_in_every_exposure_keeps_its_flag():
    """Its core stays finite, marked SAT."""
    shots = exposures(2)
    for shot in shots:
        x, y = shot.wcs.pixel_from_sky(150.0, 2.0)
        shot.pixels.mask[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] |= MaskPlane.SAT
    template = build_template(shots, CONFIG)
    x, y = template.wcs.pixel_from_sky(150.0, 2.0)
    here = round(float(y)), round(float(x))
    assert template.pixels.mask[here] & MaskPlane.SAT and np.isfinite(template.pixels.image[here])


def test_the_grid_holds_the_first_exposure_with_its_orientation():
    """The padded grid maps the exposure's pixel (x, y) to (x + padding, y + padding)."""
    shot = make_exposure(STARS, angle=30.0)
    wcs, shape = padded_grid(shot, 16)
    assert shape == (288, 288)
    x, y = wcs.pixel_from_sky(*shot.wcs.sky_from_pixel(np.array([10.0, 240.0]), np.array([20.0, 200.0])))
    np.testing.assert_allclose(x, [26, 256], atol=1e-4)
    np.testing.assert_allclose(y, [36, 216], atol=1e-4)


def test_bad_input_is_refused():
    """No exposure, or a field without stars, is named."""
    with pytest.raises(InputError, match="at least one exposure"):
        build_template([], CONFIG)
    empty = tuple(a[:0] for a in STARS)
    with pytest.raises(UnprocessableError, match="no star"):
        build_template([make_exposure(empty)], CONFIG)
