"""Cosmic rays are found, stars are not, and every target says the same."""

from __future__ import annotations

import astroscrappy
import numpy as np
import pytest
from starfield import moffat, star_field

from nightstream.errors import InputError
from nightstream.kernels.cosmic_rays import (
    find_cosmic_rays,
    laplacian_reference,
    laplacian_snr,
    one_pass,
    star_contrast,
)
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch

SKY = 1200.0  # electron


def with_tracks(rng, field, number):
    """Add one-pixel wide tracks of log-normal brightness; return the planes and the true cosmic-ray light."""
    n = field.image.shape[0]
    light = np.zeros((n, n), dtype=np.float32)
    for _ in range(number):
        x, y, angle = *rng.uniform(0, n, 2), rng.uniform(0, 2 * np.pi)
        step = np.arange(0, rng.exponential(8) + 1, 0.5)
        row, column = (y + step * np.sin(angle)).astype(int), (x + step * np.cos(angle)).astype(int)
        inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
        light[row[inside], column[inside]] = rng.lognormal(np.log(600), 0.8)
    return field.image + light, field.mask, field.variance + light, light


def score(found, light):
    """Completeness and purity in pixels."""
    both = (found & (light > 0)).sum()
    return both / (light > 0).sum(), both / found.sum()


@pytest.mark.parametrize("fwhm", [2.6, 4.2])
def test_more_complete_and_purer_than_astroscrappy(fwhm):
    """On tracks over a star field both scores are at least those of the field's usual tool at its defaults."""
    rng = np.random.default_rng(1)
    field = star_field(rng, n=512, fwhm=fwhm, per_side=10, snr=(10.0, 1000.0), sky=SKY)
    image, mask, variance, light = with_tracks(rng, field, 120)
    ours = score(find_cosmic_rays(image, mask, variance, psf_fwhm_pix=fwhm), light)
    sky_in = (image + np.float32(SKY)).astype(np.float32)
    peer = score(astroscrappy.detect_cosmics(sky_in, gain=1.0, readnoise=0.0, satlevel=1e9)[0], light)
    assert ours[0] >= peer[0] and ours[1] >= peer[1] and ours[1] > 0.95


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 4.5])
def test_stars_are_left_alone(fwhm):
    """Fields of 400 stars up to S/N 1000 without cosmic rays: at most 1e-5 of all pixels are flagged."""
    rng = np.random.default_rng(2)
    fields = [star_field(rng, n=512, fwhm=fwhm, per_side=20, snr=(10.0, 1000.0), sky=SKY) for _ in range(2)]
    flagged = sum(find_cosmic_rays(*field[:3], psf_fwhm_pix=fwhm).sum() for field in fields)
    assert flagged <= 1e-5 * 2 * 512**2


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 4.5])
def test_saturated_stars_are_left_alone(fwhm):
    """A star of 3e7 electrons, clipped at 60,000 and with a bleed trail, is no cosmic ray."""
    rows, columns = np.indices((128, 128))
    light = 3e7 * moffat(columns - 64.3, rows - 60.8, fwhm) + SKY
    light[20:110, 63:66] += 1e5
    image = np.minimum(np.random.default_rng(3).poisson(light), 60000).astype(np.float32)
    mask = np.where(image >= 60000, int(MaskPlane.SAT), 0).astype(np.int32)
    assert not find_cosmic_rays(image, mask, image, psf_fwhm_pix=fwhm).any()


def test_a_single_hot_pixel_is_found_and_its_neighbours_are_not():
    """20 sigma in one pixel flags that pixel only; neighbours pass 2.5 sigma with a chance of 1 % each."""
    image = np.random.default_rng(4).normal(SKY, np.sqrt(SKY), (64, 64)).astype(np.float32)
    variance = np.full(image.shape, SKY, dtype=np.float32)
    image[30, 31] += 20 * np.float32(np.sqrt(SKY))
    found = find_cosmic_rays(image, np.zeros(image.shape, np.int32), variance, psf_fwhm_pix=3.0)
    assert found[30, 31] and found.sum() == 1


def test_masked_pixels_are_never_flagged_and_say_nothing():
    """What stands in a masked pixel, NaN or a spike, changes nothing, and NaN is never flagged."""
    rng = np.random.default_rng(5)
    image, _, variance, _ = with_tracks(rng, star_field(rng, n=128, per_side=3, sky=SKY), 20)
    mask = np.where(rng.uniform(size=image.shape) < 0.02, int(MaskPlane.BAD), 0).astype(np.int32)
    spike, blank = image.copy(), image.copy()
    spike[mask != 0], blank[mask != 0] = 1e6, np.nan
    first = find_cosmic_rays(spike, mask, variance, psf_fwhm_pix=3.5)
    assert not first[mask != 0].any()
    np.testing.assert_array_equal(first, find_cosmic_rays(blank, mask, variance, psf_fwhm_pix=3.5))


def test_shapes_must_agree():
    """Planes of different shapes are refused."""
    plane = np.ones((8, 8), dtype=np.float32)
    with pytest.raises(InputError, match="planes differ in shape"):
        find_cosmic_rays(plane, np.zeros((8, 9), np.int32), plane, psf_fwhm_pix=3.0)


def test_sharper_stars_need_more_contrast():
    """The Laplacian of a star rises against its fine structure as stars get narrower."""
    assert star_contrast(2.0) > star_contrast(2.5) > star_contrast(3.0)


def test_laplacian_is_its_definition_on_all_targets(target):
    """L+ / (2 sigma) by the hot loop is the reference's, to a few float32 roundings of the largest term."""
    rng = np.random.default_rng(6)
    image = rng.normal(100, 10, (37, 53)).astype(np.float32)
    image[5, 7] = np.nan
    work = np.pad(image, 1, constant_values=np.nan)
    noise = np.pad(np.full(image.shape, 100, np.float32), 1, constant_values=np.inf)
    out = target.array(np.zeros(image.shape, np.float32))
    with target.running():
        laplacian_snr(Launch.over(image.shape), target.array(work), target.array(noise), out,
                      np.int32(37), np.int32(53))  # fmt: skip
    np.testing.assert_allclose(target.host(out), laplacian_reference(image) / 20, atol=8 * 6e-8 * 400 / 20)


def test_all_targets_flag_the_same_pixels(target):
    """Comparisons, + - * / and sqrt in one order: the flags are equal, not just alike."""
    rng = np.random.default_rng(7)
    image, mask, variance, _ = with_tracks(rng, star_field(rng, n=128, per_side=4, sky=SKY), 25)
    image[3, 3], mask[60:64, 20:90] = np.nan, int(MaskPlane.SAT)
    expected = find_cosmic_rays(image, mask, variance, psf_fwhm_pix=3.5)
    with target.running():
        found = find_cosmic_rays(*map(target.array, (image, mask, variance)), psf_fwhm_pix=3.5)
    assert expected.any()
    np.testing.assert_array_equal(target.host(found), expected)


def test_flags_only_grow():
    """A further pass keeps what was found."""
    rng = np.random.default_rng(8)
    image, mask, variance, _ = with_tracks(rng, star_field(rng, n=96, per_side=2, sky=SKY), 10)
    work, noise = (np.pad(a, 1, constant_values=c) for a, c in ((image, np.nan), (variance, np.inf)))
    rays = (rng.uniform(size=image.shape) < 0.01).astype(np.uint8)
    again = one_pass(work, noise, (mask != 0).astype(np.uint8), rays, 5.0, 2.0)
    assert again[rays == 1].all()
