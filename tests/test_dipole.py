"""Dipoles: recognised, measured, and never mistaken for transients."""

import numpy as np
from scenes import SKY, flux_of_snr, gaussian_psf, lattice, stars

from nightstream.kernels.detection import detect
from nightstream.kernels.dipole import classify_dipoles, fit_dipoles, pair_lobes
from nightstream.kernels.stamp_fit import place_stamps


def difference(rng, shape, stars_now, stars_then):
    """Two exposures of Poisson noise, subtracted: (image, mask, variance)."""
    now, then = (rng.poisson(stars(shape, *s) + SKY).astype(np.float32) for s in (stars_now, stars_then))
    return now - then, np.zeros(shape, np.int32), now + then


def dipoles_of(target, planes):
    """Detect, pair, fit and classify."""
    psf, planes = gaussian_psf(target), [target.array(p) for p in planes]
    with target.running():
        found = detect(*planes, psf.centred(0.0, 0.0)[0])
        i, j = pair_lobes(found.x, found.y, found.snr, found.footprint, max_separation_pix=12.0)
        fit = fit_dipoles(*planes, found.x[i], found.y[i], found.x[j], found.y[j], psf)
    return {name: target.host(column) for name, column in fit.items()}, target.host(classify_dipoles(fit))


def test_displaced_star_gives_both_fluxes(target):
    """A star that moved by 3 pixels is a dipole whose lobes have its fluxes and places, within their
    errors."""
    rng = np.random.default_rng(40)
    x, y, shape = lattice(rng, 5, 60)
    flux = np.full(x.size, flux_of_snr(80.0))
    fit, is_dipole = dipoles_of(target, difference(rng, shape, (x, y, flux), (x + 3, y, 0.9 * flux)))
    assert is_dipole.all() and len(is_dipole) == x.size
    for lobe, truth in (("positive", 1.0), ("negative", 0.9)):
        pull = (fit[f"flux_{lobe}"] - truth * flux) / fit[f"flux_{lobe}_err"]
        # 25 pulls of width 1; the skewness of a nearly degenerate fit adds some
        assert abs(np.median(pull)) < 4 * 1.25 / np.sqrt(pull.size) and np.abs(pull).max() < 4
    # the ratio is far better measured than either flux: sqrt(2) / S/N of a lobe
    assert abs(np.median(fit["flux_negative"] / fit["flux_positive"]) - 0.9) < 4 * np.sqrt(2) / 80 / np.sqrt(x.size)
    separation = np.hypot(fit["x_positive"] - fit["x_negative"], fit["y_positive"] - fit["y_negative"])
    assert abs(np.median(separation) - 3) < 0.3 and fit["converged"].all()


def test_subpixel_shift_is_a_dipole(target):
    """A bright star displaced by 0.4 pixels is still recognised."""
    rng = np.random.default_rng(41)
    x, y, shape = lattice(rng, 4, 60)
    flux = np.full(x.size, flux_of_snr(300.0))
    _, is_dipole = dipoles_of(target, difference(rng, shape, (x, y, flux), (x + 0.3, y - 0.3, flux)))
    assert len(is_dipole) == x.size and is_dipole.all()


def test_isolated_transient_is_never_a_dipole(target):
    """New and vanished stars, alone or next to a weak residual, are no dipoles."""
    rng = np.random.default_rng(42)
    x, y, shape = lattice(rng, 5, 60)
    flux = rng.uniform(2e3, 5e4, x.size)
    _, alone = dipoles_of(target, difference(rng, shape, (x, y, flux), (x[:0], y[:0], flux[:0])))
    _, beside = dipoles_of(target, difference(rng, shape, (x, y, flux), (x + 5, y + 2, 0.2 * flux)))
    assert not alone.any() and not beside.any()


def test_variable_star_is_no_dipole(target):
    """A star that brightened where it stands leaves a single lobe."""
    rng = np.random.default_rng(43)
    x, y, shape = lattice(rng, 5, 60)
    flux = np.full(x.size, 1e5)
    _, is_dipole = dipoles_of(target, difference(rng, shape, (x, y, 1.3 * flux), (x, y, flux)))
    assert not is_dipole.any()


def test_lobes_pair_with_their_strongest_mutual_neighbour(target):
    """Of three peaks in one footprint the strongest two of opposite sign pair; other footprints do not
    mix."""
    x = target.array([10.0, 13.0, 16.0, 50.0, 52.0, 90.0])
    snr = target.array([20.0, -30.0, 9.0, 8.0, -8.0, -40.0])
    footprint = target.array([1, 1, 1, 2, 3, 4], np.int32)
    i, j = pair_lobes(x, 0 * x, snr, footprint, max_separation_pix=8.0)
    np.testing.assert_array_equal(target.host(i), [0])
    np.testing.assert_array_equal(target.host(j), [1])


def test_no_pairs_is_valid(target):
    """Without candidates all columns are empty."""
    planes = (np.zeros((40, 40), np.float32), np.zeros((40, 40), np.int32), np.ones((40, 40), np.float32))
    fit, is_dipole = dipoles_of(target, planes)
    assert len(is_dipole) == 0 and all(len(column) == 0 for column in fit.values())


def test_stamps_are_placed_by_whole_pixels(target):
    """A stamp put (2, -1) pixels off lands there, and what leaves the frame is lost."""
    stamps = np.arange(9, dtype=np.float32).reshape(1, 3, 3) + 1
    placed = target.host(place_stamps(target.array(stamps), target.array([2]), target.array([-1]), 5))
    wanted = np.zeros((5, 5))
    wanted[0:3, 3:5] = stamps[0, :, :2]
    np.testing.assert_array_equal(placed[0], wanted)
