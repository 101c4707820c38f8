"""Sources on a direct image: complete, calibrated, and told apart from blends."""

import numpy as np
from scenes import flux_of_snr, gaussian_psf, lattice, noisy, stars

from nightstream.engine.sources import measure_sources
from nightstream.engine.values import MaskedImage


def measure(target, planes, **options):
    with target.running():
        return measure_sources(MaskedImage(*(target.array(p) for p in planes)), gaussian_psf(target), **options)


def test_stars_come_back_brightest_first(target):
    """Every star once, in order of flux, with flux and position pulls of mean 0 and width 1, on the host."""
    rng = np.random.default_rng(80)
    x, y, shape = lattice(rng, 8, 40)
    flux = flux_of_snr(np.exp(rng.uniform(np.log(20), np.log(300), x.size)))
    table = measure(target, noisy(rng, stars(shape, x, y, flux)))
    assert all(type(column) is np.ndarray for column in table.values())
    assert len(table["x"]) == x.size and (np.diff(table["psf_flux"]) <= 0).all()
    index = np.hypot(table["x"][:, None] - x, table["y"][:, None] - y).argmin(axis=1)
    assert len(set(index)) == x.size
    for name, truth in (("psf_flux", flux), ("ap_flux", flux), ("x", x), ("y", y)):
        pull = (table[name] - truth[index]) / table[f"{name}_err"]
        # a fitted position adds 1 / snr, at most 1 / 20, to the flux pull's mean
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size) + 0.05 and abs(pull.std() - 1) < 4 / np.sqrt(2 * pull.size)
    flags = [name for name, column in table.items() if column.dtype == bool and name != "psf_flux_flag_edge"]
    assert not any(table[name].any() for name in flags)


def test_only_comparable_neighbours_make_a_blend():
    """Two stars of like flux a few pixels apart are blended; one with a neighbour of a hundredth is not, that one is."""
    rng = np.random.default_rng(81)
    x, y = np.array([30.0, 41.0, 90.0, 104.0]), np.array([30.0, 30.0, 30.0, 30.0])
    flux = np.array([1e5, 8e4, 4e5, 4e3])
    table = measure_sources(MaskedImage(*noisy(rng, stars((60, 130), x, y, flux))), gaussian_psf())
    order = np.argsort(table["x"])
    np.testing.assert_array_equal(table["is_blended"][order], [True, True, False, True])


def test_most_significant_are_kept():
    """``max_sources`` keeps the brightest; an empty image gives empty columns."""
    rng = np.random.default_rng(82)
    x, y, shape = lattice(rng, 3, 40)
    image, mask, variance = noisy(rng, stars(shape, x, y, np.linspace(1e4, 1e5, x.size)))
    table = measure_sources(MaskedImage(image, mask, variance), gaussian_psf(), max_sources=4)
    assert len(table["x"]) == 4 and table["psf_flux"].min() > 5e4
    empty = measure_sources(MaskedImage(0 * image, mask, variance), gaussian_psf())
    assert all(len(column) == 0 for column in empty.values())
