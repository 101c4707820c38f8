"""The pattern of pairs tells rotation and scale, and does not know the shift."""

import numpy as np
import pytest

from nightstream.kernels.pair_pattern import likely_poses

SIZE, LIMITS = 4000, {"tolerance_pix": 2.0, "max_scale": 0.01}


def lists(rng, n, angle_deg, scale):
    """Two lists of one field, a third of each spurious, the second turned, stretched and moved by anything."""
    x, y = rng.uniform(0, SIZE, (2, n))
    z = scale * np.exp(1j * np.radians(angle_deg)) * (x + 1j * y) + rng.uniform(-1e5, 1e5) + 1j * rng.uniform(-1e5, 1e5)
    wrong = rng.random(n) < 1 / 3
    z[wrong] = z.mean() + rng.uniform(-SIZE / 2, SIZE / 2, (2, wrong.sum())).T @ [1, 1j]
    return x, y, z.real.copy(), z.imag.copy()


def distance(poses, angle_deg, scale, step):
    """The distance of the nearest pose from the truth, in cells."""
    turn = np.exp(1j * (np.array([angle for angle, _ in poses]) - np.radians(angle_deg)))
    return np.hypot(np.angle(turn), [s - (scale - 1) for _, s in poses]).min() / step


@pytest.mark.parametrize("n", [15, 200])
@pytest.mark.parametrize("angle_deg, scale", [(0.0, 1.0), (90.0, 0.993), (-179.0, 1.006), (47.3, 1.0)])
def test_the_true_pose_is_among_the_likely_ones(target, n, angle_deg, scale):
    """To within a cell along each of the two axes."""
    columns = map(target.array, lists(np.random.default_rng(n), n, angle_deg, scale))
    poses, step = likely_poses(*columns, max_angle=np.pi, **LIMITS)
    assert len(poses) <= 24
    assert distance(poses, angle_deg, scale, step) < np.sqrt(2)


def test_angles_beyond_the_limit_are_not_tried():
    """What is known about the rotation is used."""
    columns = lists(np.random.default_rng(4), 100, 3.0, 1.0)
    poses, step = likely_poses(*columns, max_angle=np.radians(5.0), **LIMITS)
    assert max(abs(angle) for angle, _ in poses) <= np.radians(5.0) + step
    assert distance(poses, 3.0, 1.0, step) < np.sqrt(2)
