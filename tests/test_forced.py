"""Fluxes at many positions in one loop: what `psf_flux` says, without its stamps."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import lattice, noisy, stars

from nightstream.kernels import forced
from nightstream.kernels.forced import forced_psf_flux
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.psf import PsfModel


def varying_psf(target, size=25) -> PsfModel:
    """A Gaussian that gets wider across the detector."""
    narrow, wide = (PsfModel.gaussian(sigma, size).coefficients[0] for sigma in (1.8, 2.2))
    coefficients = target.array(np.stack([narrow, wide - narrow, np.zeros_like(narrow)]))
    return PsfModel(coefficients, order=1, x_centre=10.0, y_centre=60.0, x_scale=100.0, y_scale=100.0)


def scene(rng):
    """Stars up to S/N 100 with bad, blank and saturated pixels; positions on them, between, at the border and beyond."""
    x, y, shape = lattice(rng, 6, 21)
    image, mask, variance = noisy(rng, stars(shape, x, y, rng.uniform(100, 2e4, x.size)))
    mask[rng.random(shape) < 0.1] = int(MaskPlane.BAD)
    mask[30:60, 30:60] = int(MaskPlane.SAT)
    image[100:, 70:90], variance[70:90, 100:] = np.nan, np.nan
    variance[5:9, 5:60] = 0.0
    x = np.r_[x, rng.uniform(-30, shape[1] + 30, 150), np.nan, 45.0]
    y = np.r_[y, rng.uniform(-30, shape[0] + 30, 150), 3.0, 45.0]
    return (image, mask, variance), x, y


def columns(target, function, pixels, x, y, psf, **options):
    out = function(*map(target.array, pixels), target.array(x), target.array(y), psf, **options)
    return {name: target.host(column) for name, column in out.items()}


@pytest.mark.parametrize("order", [0, 1])
def test_it_is_psf_flux(target, order):
    """Every column is that of `psf_flux`, wherever the position lies and whatever the pixels are."""
    planes, x, y = scene(np.random.default_rng(60))
    psf = varying_psf(target) if order else replace(PsfModel.gaussian(2.0), coefficients=varying_psf(target).coefficients[:1])
    got, wanted = (columns(target, f, planes, x, y, psf) for f in (forced_psf_flux, psf_flux))
    assert got.keys() == wanted.keys() and np.isnan(wanted["flux"]).any() and (~wanted["flag"]).sum() > 50
    for name in ("n_pixels", "flag", "flag_edge"):
        np.testing.assert_array_equal(got[name], wanted[name])
    # The same sums in another order, of a PSF that may round to the neighbouring float32 in some of its 625 pixels.
    for name in ("flux", "flux_err", "chi2"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, atol=1e-6 * np.nanmax(abs(wanted["flux_err"])))


def test_planes_may_be_chosen(target):
    """With no plane to avoid, flagged pixels enter as they do in `psf_flux`."""
    planes, x, y = scene(np.random.default_rng(61))
    got, wanted = (columns(target, f, planes, x, y, varying_psf(target), planes=0) for f in (forced_psf_flux, psf_flux))
    np.testing.assert_array_equal(got["n_pixels"], wanted["n_pixels"])
    np.testing.assert_allclose(got["flux"], wanted["flux"], rtol=1e-6, atol=1e-5)


def test_no_positions_and_small_psfs(target):
    """An empty list gives empty columns; a PSF narrower than the interpolant is moved all the same."""
    planes, x, y = scene(np.random.default_rng(62))
    psf = varying_psf(target, size=9)
    assert all(len(column) == 0 for column in columns(target, forced_psf_flux, planes, x[:0], y[:0], psf).values())
    got, wanted = (columns(target, f, planes, x, y, psf) for f in (forced_psf_flux, psf_flux))
    np.testing.assert_allclose(got["flux"], wanted["flux"], rtol=1e-6, atol=1e-5)


def test_a_large_psf_is_left_to_psf_flux(target, monkeypatch):
    """Beyond what a block can hold the answer is that of `psf_flux`, to the bit."""
    planes, x, y = scene(np.random.default_rng(63))
    monkeypatch.setattr(forced, "MAX_SIZE", 23)
    got, wanted = (columns(target, f, planes, x[:9], y[:9], varying_psf(target)) for f in (forced_psf_flux, psf_flux))
    for name, column in wanted.items():
        np.testing.assert_array_equal(got[name], column)
