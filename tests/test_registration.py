"""Registration: matching under shift, rotation, scale and spurious stars; the affine fit."""

import numpy as np
import pytest

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.registration import apply_affine, fit_affine, match_stars

SIZE = 4000


def field(rng, n=300, angle_deg=0.0, scale=1.0, shift=(0.0, 0.0), spurious=0.0, scatter=0.05):
    """Two lists of one sky: the second moved, with its own order, noise and a share of stars that are not in
    the first."""
    x, y, flux = rng.uniform(0, SIZE, n), rng.uniform(0, SIZE, n), rng.pareto(1.0, n) + 1
    a = scale * np.exp(1j * np.radians(angle_deg))
    z = a * (x + 1j * y) + shift[0] + 1j * shift[1]
    order = rng.permutation(n)
    x2 = (z.real + rng.normal(0, scatter, n))[order]
    y2 = (z.imag + rng.normal(0, scatter, n))[order]
    flux2 = (flux * rng.lognormal(0, 0.05, n))[order]
    wrong = rng.random(n) < spurious
    x2[wrong], y2[wrong] = rng.uniform(0, SIZE, (2, wrong.sum()))
    return (x, y, flux), (x2, y2, flux2), order, wrong, np.array([[a.real, -a.imag, shift[0]], [a.imag, a.real, shift[1]]])


@pytest.mark.parametrize("angle, scale", [(0.0, 1.0), (0.4, 1.008), (-0.5, 0.991)])
@pytest.mark.parametrize("spurious", [0.0, 0.5])
def test_pairs_are_the_true_ones(target, angle, scale, spurious):
    """Shifted by 150 pixels, turned, stretched and half spurious, nearly all true pairs and no wrong ones
    come back."""
    one, two, order, wrong, _ = field(np.random.default_rng(50), 300, angle, scale, (150.0, -120.0), spurious)
    i, j = match_stars(*map(target.array, one), *map(target.array, two), max_offset_pix=250.0, tolerance_pix=2.0)
    i, j = target.host(i), target.host(j)
    true = order[j] == i
    # chance puts n pi 2^2 / 4000^2 = 2e-4 spurious stars within the tolerance of each star
    assert (~true | wrong[j]).sum() <= 2
    assert len(i) > 0.97 * (~wrong).sum()
    assert len(set(i)) == len(i) and len(set(j)) == len(j)


def test_few_stars_match():
    """Twelve stars on a small field are enough."""
    one, two, order, _, _ = field(np.random.default_rng(51), 12, 0.1, 1.0, (30.0, 20.0))
    i, j = match_stars(*one, *two, max_offset_pix=60.0, tolerance_pix=2.0)
    assert len(i) == 12 and (order[j] == i).all()


@pytest.mark.parametrize("angle", [0.0, 37.0, 90.0, 135.5, 180.0, 211.0, 270.0, 359.0])
@pytest.mark.parametrize("n", [24, 200, 1000])
def test_any_rotation_and_a_shift_of_the_field_size(target, n, angle):
    """Half of the stars are spurious, the frames are a field apart and turned by anything: the true pairs come back.

    Of 24 stars some 12 are in both lists.
    """
    rng = np.random.default_rng(n + round(angle))
    one, two, order, wrong, matrix = field(rng, n, angle, 1.003, (0.0, 0.0), 0.5)
    shift = np.array([0.9, -0.7]) * SIZE + SIZE / 2 - matrix[:, :2] @ [SIZE / 2, SIZE / 2]
    two = two[0] + shift[0], two[1] + shift[1], two[2]
    i, j = match_stars(
        *map(target.array, one), *map(target.array, two), max_offset_pix=1.2 * SIZE, tolerance_pix=2.0, max_rotation_deg=180
    )  # fmt: skip
    i, j = target.host(i), target.host(j)
    true = (order[j] == i) & ~wrong[j]
    # 1000 spurious stars of density 1000 / 4000^2 put 0.4 of them within 2 pixels of another star
    assert (~true).sum() <= 3
    assert true.sum() > 0.97 * (~wrong).sum() - 1


def test_the_frames_need_not_hold_the_same_sky():
    """Two square frames, turned by 60 degrees and half a field apart, each with a third of stars of its own."""
    rng = np.random.default_rng(61)
    sky, flux = rng.uniform(-2, 2, 8000) * SIZE + 1j * rng.uniform(-2, 2, 8000) * SIZE, rng.pareto(1.0, 8000) + 1
    places = [sky + rng.normal(0, 0.05, 8000), (sky - SIZE / 2) * np.exp(1j * np.radians(60))]
    seen = [(np.abs(z.real) < SIZE / 2) & (np.abs(z.imag) < SIZE / 2) & (rng.random(8000) < 0.67) for z in places]
    one, two = ((z.real[s], z.imag[s], flux[s]) for z, s in zip(places, seen, strict=True))
    i, j = match_stars(*one, *two, max_offset_pix=SIZE, tolerance_pix=2.0, max_rotation_deg=180)
    first, second = (np.flatnonzero(s) for s in seen)
    assert (first[i] != second[j]).sum() <= 2
    assert len(i) > 0.97 * (seen[0] & seen[1]).sum()


def test_twelve_stars_turned_by_any_angle_match():
    """Twelve stars, four of which are not the same, are enough for rotation and shift."""
    for angle in (20.0, 140.0, 260.0):
        one, two, order, wrong, _ = field(np.random.default_rng(63), 12, angle, 1.0, (0.0, 0.0))
        two[0][:4], two[1][:4] = np.random.default_rng(64).uniform(0, SIZE, (2, 4))
        i, j = match_stars(*one, *two, max_offset_pix=2 * SIZE, tolerance_pix=2.0, max_rotation_deg=180)
        assert set(range(4, 12)) <= set(j) and (order[j] == i).mean() > 0.8


def test_a_mirrored_list_does_not_match():
    """Rotations keep parity."""
    one, two, *_ = field(np.random.default_rng(65), 200, 30.0)
    with pytest.raises(UnprocessableError, match="200 and 200 stars agree"):
        match_stars(*one, -two[0], *two[1:], max_offset_pix=2 * SIZE, tolerance_pix=2.0, max_rotation_deg=180)


@pytest.mark.parametrize("n", [12, 50, 200])
def test_unrelated_fields_do_not_match_at_any_angle(n):
    """However many angles and shifts are tried, chance is not taken for a match; 1 of 100 is what the limit allows."""
    rng = np.random.default_rng(n)
    for _ in range(5):
        lists = [rng.uniform(0, SIZE, n) for _ in range(6)]
        with pytest.raises(UnprocessableError, match=f"{n} and {n} stars agree, chance gives"):
            match_stars(*lists, max_offset_pix=SIZE, tolerance_pix=2.0, max_rotation_deg=180)


def test_one_star_listed_often_does_not_vote_often():
    """Doubles in both lists make no match of unrelated fields, and cost a true one nothing."""
    rng = np.random.default_rng(66)
    x, y, flux = (np.repeat(c, 5) for c in rng.uniform(0, SIZE, (3, 10)))
    with pytest.raises(UnprocessableError, match="10 and 10 stars agree"):
        match_stars(x, y, flux, np.roll(x, 15), y[::-1], flux, max_offset_pix=SIZE, tolerance_pix=2.0)
    i, j = match_stars(x, y, flux, x + 30.0, y, flux, max_offset_pix=60.0, tolerance_pix=2.0)
    assert len(set(x[i])) == 10 and (x[i] == x[j]).all()


def test_fluxes_may_be_on_different_scales():
    """Only the order of fluxes matters, and it may be rough."""
    rng = np.random.default_rng(52)
    one, two, order, _, _ = field(rng, 500, 0.0, 1.0, (10.0, 5.0))
    i, j = match_stars(*one, *two[:2], two[2] * 1e6 * rng.lognormal(0, 0.5, 500), max_offset_pix=50, tolerance_pix=1.5)
    assert (order[j] == i).all() and len(i) > 480


def test_unrelated_fields_do_not_match():
    """Lists with nothing in common raise, with the counts."""
    rng = np.random.default_rng(53)
    lists = [rng.uniform(0, SIZE, 200) for _ in range(6)]
    with pytest.raises(UnprocessableError, match="200 and 200 stars"):
        match_stars(*lists, max_offset_pix=100.0, tolerance_pix=2.0)


def test_too_few_stars_is_told():
    """Two stars are not enough, nor are NaN ones."""
    x = np.array([1.0, 2.0, np.nan, np.nan])
    with pytest.raises(UnprocessableError, match="2 and 2 stars to match, wanted at least 3"):
        match_stars(x, x, x, x, x, x, max_offset_pix=10.0, tolerance_pix=1.0)
    with pytest.raises(InputError, match="positive"):
        match_stars(x, x, x, x, x, x, max_offset_pix=0.0, tolerance_pix=1.0)


def test_affine_is_recovered_through_outliers(target):
    """The matrix comes back within its errors, the rms is the scatter, and the outliers are left out."""
    rng = np.random.default_rng(54)
    n, scatter = 400, 0.1
    (x, y, _), (x2, y2, _), order, _, matrix = field(rng, n, 0.3, 1.005, (12.0, -7.0), 0.0, scatter)
    outlier = rng.random(n) < 0.1
    x2[outlier] += rng.uniform(5, 50, outlier.sum())
    arrays = [target.array(v) for v in (x[order], y[order], x2, y2)]
    got, rms, used = fit_affine(*arrays)
    got, used = target.host(got), target.host(used)
    assert not (used & outlier).any() and (used | outlier).mean() > 0.97
    # slopes: scatter / (sqrt(n) SIZE / sqrt 12); values over the field: twice the error of the mean at the corners
    assert np.abs(got[:, :2] - matrix[:, :2]).max() < 5 * scatter / np.sqrt(n) / (SIZE / np.sqrt(12))
    corners = np.array([0, SIZE, 0, SIZE]), np.array([0, 0, SIZE, SIZE])
    moved = np.subtract(apply_affine(got, *corners), apply_affine(matrix, *corners))
    assert np.abs(moved).max() < 5 * 3 * scatter / np.sqrt(n)
    # clipping at 3 sigma takes off a few per cent
    assert abs(rms / scatter - 1) < 0.03 + 4 / np.sqrt(4 * n)


def test_affine_needs_three_pairs():
    """Two pairs raise with the count."""
    x = np.array([0.0, 1.0])
    with pytest.raises(UnprocessableError, match="at least 3 pairs of stars, got 2"):
        fit_affine(x, x, x, x)
