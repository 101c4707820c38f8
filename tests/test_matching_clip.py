"""What changed does not enter the fit of the kernel; what the model cannot describe yet does."""

import numpy as np

from nightstream.kernels.matching_clip import amplitudes, clip, point_residuals

SIDE, FWHM = 29, 4.0
N = 60


def star(flux, dx=0.0, dy=0.0):
    offset = np.arange(SIDE) - SIDE // 2
    sigma = FWHM / 2.3548
    profile = np.exp(-0.5 * ((offset - dx) / sigma) ** 2)
    return (flux / (2 * np.pi * sigma**2) * np.outer(np.exp(-0.5 * ((offset - dy) / sigma) ** 2), profile)).ravel()


def stamps(seed=1, flux=3e4):
    """Residuals of pure noise under models of one star each; variance of sky 100 and photons."""
    signal = np.tile(star(flux), (N, 1))
    variance = 100 + signal
    residual = np.random.default_rng(seed).normal(0, np.sqrt(variance))
    return residual, 1 / variance, signal


def judge(target, residual, weights, signal, model_error=0.0, round_=3):
    arrays = [target.array(a) for a in (residual, weights, np.zeros(residual.shape, bool), signal, np.full(N, model_error))]
    verdict = clip(*arrays, SIDE, FWHM, round_)
    return target.host(verdict.used), target.host(verdict.bad)


def test_noise_is_not_clipped(target):
    """At most 1 of 60 stars and 1 % of the pixels of pure noise are left out."""
    used, bad = judge(target, *stamps())
    assert used.sum() >= N - 1 and bad.mean() < 0.01


def test_a_star_that_changed_is_left_out(target):
    """8 sigma of its whole flux, which adds 64 to a chi^2 of 841 +- 41, are enough."""
    residual, weights, signal = stamps()
    change = 8 / np.sqrt((weights[7] * signal[7] ** 2).sum())
    residual[7] += change * signal[7]
    used, _ = judge(target, residual, weights, signal)
    assert not used[7] and used.sum() >= N - 2


def test_pixels_near_a_transient_are_left_out_and_the_star_stays(target):
    """A source of 9 sigma 8 pixels off: its pixels go, the star itself remains."""
    residual, weights, signal = stamps()
    residual[5] += star(9 * np.sqrt(4 * np.pi * 100) * FWHM / 2.3548, 8, -6)
    used, bad = judge(target, residual, weights, signal)
    lost = bad[5].reshape(SIDE, SIDE)
    assert used[5] and lost[SIDE // 2 - 6, SIDE // 2 + 8] and not lost[SIDE // 2, SIDE // 2]


def test_a_star_that_moved_is_left_out_as_a_whole(target):
    """Its core, where both lobes of the residual are, is most of its light: the wings alone must not stay in the fit."""
    residual, weights, signal = stamps()
    residual[9] += star(3e4, 0.5) - signal[9]
    used, bad = judge(target, residual, weights, signal)
    assert not used[9] and used.sum() >= N - 2 and not bad[9].any()


def test_what_the_model_may_be_wrong_by_is_forgiven(target):
    """A model known to 3 % keeps a star that is off by 3 %; one known to 0.1 % does not."""
    residual, weights, signal = stamps(flux=3e5)
    residual[3] += 0.03 * signal[3]
    assert judge(target, residual, weights, signal, 0.03)[0][3]
    assert not judge(target, residual, weights, signal, 0.001)[0][3]


def test_the_change_of_flux_has_the_error_it_says():
    """Pulls of the amplitude are N(0, 1) within 5 / sqrt(N)."""
    change, error = amplitudes(*stamps(seed=4))
    assert abs(np.mean(change / error)) < 5 / np.sqrt(N) and abs(np.std(change / error) - 1) < 5 / np.sqrt(2 * N)


def test_half_of_the_stars_always_stay(target):
    """Even when all changed."""
    residual, weights, signal = stamps()
    residual += np.random.default_rng(2).normal(0, 0.5, (N, 1)) * signal
    assert judge(target, residual, weights, signal)[0].sum() >= N // 2


def test_masked_pixels_hide_nothing_and_cost_nothing(target):
    """A huge residual under weight 0 is not seen."""
    residual, weights, signal = stamps()
    residual[0, :50], weights[0, :50] = 1e9, 0
    near = point_residuals(target.array(residual), target.array(weights), SIDE, FWHM)
    assert target.host(near).mean() < 0.01


def test_what_is_worst_goes_first(target):
    """Beside a transient as bright as the star, what a hundredth of it would leave elsewhere stays for a later round."""
    residual, weights, signal = stamps()
    residual[5] += star(3e4, 8, -6) + star(3e3, -8, 6)
    _, bad = judge(target, residual, weights, signal, round_=1)
    lost = bad[5].reshape(SIDE, SIDE)
    assert lost[SIDE // 2 - 6, SIDE // 2 + 8] and not lost[SIDE // 2 + 6, SIDE // 2 - 8]


def test_a_stamp_that_fits_nowhere_is_left_out_as_a_whole(target):
    """No stamp keeps its place in the fit without any of its pixels."""
    residual, weights, signal = stamps()
    residual += 30 / np.sqrt(weights)
    used, bad = judge(target, residual, weights, signal)
    assert used.any() and not bad[used].any()
