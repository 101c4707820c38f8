"""The benchmark's sample and judge: the truth is that of the images, and a perfect difference is found to be one."""

import numpy as np
import pytest

pytest.importorskip("galsim", reason="GalSim, the extra 'sim', is not installed")
from judge import EDGE_PIX, judge, oracle, template_noise_bound, true_kernel
from sample import SATURATION, SCALE, TEMPLATE, make_sample
from scipy import ndimage

SIZE = 512


@pytest.fixture(scope="module")
def sample():
    return make_sample(SIZE, seed=1)


def test_noise_is_what_the_truth_says(sample):
    """Template minus its expected light has chi^2 1 per pixel within 5 sqrt(2 / N), saturation apart."""
    fine = ~sample.saturated & (sample.template < SATURATION)
    chi2 = (sample.template - sample.static_template)[fine] ** 2 / TEMPLATE.variance(sample.static_template[fine])
    assert chi2.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / chi2.size))


def test_the_difference_holds_the_transients_and_noise(sample):
    """Away from transients the oracle scatters by less than the expected variance, which has the template's share too,
    and the bound by just that, within 5 / sqrt(2 N) and the 1 % by which one Gaussian differs from the true kernel."""
    near = np.zeros((SIZE, SIZE), bool)
    near[tuple(np.round(sample.transients[:, 1::-1]).astype(int).T)] = True
    quiet = ~ndimage.binary_dilation(near | sample.saturated, iterations=20)
    perfect, allowed = (
        (d[quiet] / np.sqrt(sample.variance[quiet])).std() for d in (oracle(sample), template_noise_bound(sample))
    )
    assert perfect < allowed
    assert allowed == pytest.approx(1, abs=0.01 + 5 / np.sqrt(2 * quiet.sum()))


def test_the_true_kernel_turns_one_psf_into_the_other():
    """Its sum is the flux scale, to the light beyond its 31 pixels."""
    assert true_kernel(SIZE / 2, SIZE / 2, SIZE).sum() == pytest.approx(SCALE, rel=0.01)


def test_the_judge_finds_nothing_wrong_with_the_oracle(sample):
    """Every bright transient found, nothing else, pulls N(0, 1) within 5 sigma; zeros instead of it find nothing."""
    verdict = judge(sample, oracle(sample))
    n = len(verdict.pulls)
    assert (
        verdict.numbers["completeness_7"] == 1 and verdict.numbers["purity"] == 1 and verdict.numbers["negative_detections"] == 0
    )
    assert verdict.numbers["sky_noise"] == pytest.approx(1, abs=0.02)
    assert abs(verdict.pulls.mean()) < 5 / np.sqrt(n) and abs(verdict.pulls.std() - 1) < 5 / np.sqrt(2 * n)
    assert judge(sample, np.full((SIZE, SIZE), 1e-9)).numbers["completeness_5"] == 0


def test_the_judge_counts_what_is_left_out(sample):
    """Pixels without a value, edge and saturation apart."""
    difference = oracle(sample)
    difference[EDGE_PIX : EDGE_PIX + 8, EDGE_PIX : EDGE_PIX + 8] = np.nan
    assert judge(sample, difference).numbers["bad_fraction"] == pytest.approx(64 / SIZE**2)


def test_the_same_seed_gives_the_same_bits(sample):
    """And another one does not."""
    again, other = make_sample(256, seed=1), make_sample(256, seed=2)
    np.testing.assert_array_equal(again.science, make_sample(256, seed=1).science)
    assert (again.science != other.science).any()
