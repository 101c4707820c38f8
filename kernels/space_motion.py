"""Position, proper motion and parallax of many objects at once, by weighted least squares on their detections.

Rows lie sorted by object and time, as in `light_curve`. Straight motion on a tangent plane: no perspective acceleration,
no orbits.
"""

from __future__ import annotations

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.sky_frames import sky_from_vectors, tangent_basis, unit_vectors
from nightstream.kernels.target import Launch, array_module, hot_loop

MAS_PER_RADIAN = np.degrees(1.0) * 3.6e6
MAS_PER_DEGREE = 3.6e6
DAYS_PER_YEAR = 365.25
NIGHT_GAP_DAYS = 0.5  # detections closer than this belong to one epoch
PARAMETERS = 5  # east, north (mas), proper motion east, north (mas/yr), parallax (mas)


def fit_space_motion(ra, dec, covariance, time, earth, start, *, min_epochs: int = 6, min_days: float = 180.0) -> dict:
    """Fit each object's track on the sky.

    ``ra, dec`` (n,) deg, ICRS, finite; ``covariance`` (n, 3) deg^2 of the errors: of ra cos(dec), of dec, and between
    them, positive definite; ``time`` (n,) MJD TAI; ``earth`` (n, 3) AU from the barycentre, ICRS axes, at that time.
    The rows of object k are ``start[k]`` up to ``start[k + 1]`` (int64, (m + 1,)), in order of time. The reference
    epoch is the mean time, weighted as the positions are. Objects seen in ``min_epochs`` nights or more over
    ``min_days`` or more get all five parameters, others a mean position alone.

    Returns (m,) float64: ``ra, dec`` (deg, from the barycentre), ``ra_err, dec_err`` (deg, with cos(dec)),
    ``ra_dec_cov`` (deg^2), ``epoch`` (MJD TAI of ra and dec), ``pm_ra`` (with cos(dec)), ``pm_dec`` (mas/yr),
    ``parallax`` (mas), ``pm_ra_err, pm_dec_err, parallax_err``, ``pm_ra_pm_dec_cov, pm_ra_parallax_cov,
    pm_dec_parallax_cov`` and ``chi2`` of the fit about it; int32 ``n_data`` (rows in a five-parameter fit, else 0).
    What was not fitted is NaN, everything of an object without rows. Errors are those of the given covariances.
    Raises InputError for arrays that do not fit.
    """
    xp = array_module(ra)
    n, count = len(ra), len(start) - 1
    if covariance.shape != (n, 3) or earth.shape != (n, 3) or not dec.shape == time.shape == (n,):
        raise InputError(f"{n} rows want (n, 3) covariance and earth, got {covariance.shape}, {earth.shape}, {dec.shape}")
    start = xp.ascontiguousarray(start, dtype=xp.int64)
    origin = _first_rows(xp, ra, dec, start)
    offsets = _tangent_offsets(ra, dec, earth, origin, xp.searchsorted(start, xp.arange(n), side="right") - 1)
    normal, right = xp.zeros((count, PARAMETERS, PARAMETERS)), xp.zeros((count, PARAMETERS))
    scalars = xp.full((count, 3), xp.nan)  # weighted sum of squares, epoch, nights
    sum_motion_equations(
        Launch.over((count,), (64,)), offsets, _weights(xp, covariance), xp.ascontiguousarray(time, dtype=xp.float64), start,
        normal, right, scalars, np.int64(count),
    )  # fmt: skip
    last = time[xp.maximum(start[1:] - 1, 0)] if n else xp.zeros(count)
    span = last - time[xp.minimum(start[:-1], n - 1)] if n else xp.zeros(count)
    is_moving = (scalars[:, 2] >= min_epochs) & (span >= min_days)
    found, inverse = _solved(xp, normal, right, is_moving)
    chi2 = xp.maximum(scalars[:, 0] - (found * right).sum(axis=1), 0.0)
    return _columns(xp, origin, found, inverse, scalars[:, 1], is_moving, chi2, start[1:] - start[:-1])


def fit_one_reference(east, north, covariance, years, parallax_east, parallax_north) -> tuple:
    """Define the fit of one object: parameters and their covariance, mas and years, by generalised least squares."""
    one, none = np.ones_like(years), np.zeros_like(years)
    design = np.stack([[one, none, years, none, parallax_east], [none, one, none, years, parallax_north]]).transpose(2, 0, 1)
    normal, right = np.zeros((5, 5)), np.zeros(5)
    for a, c, x, y in zip(design, covariance, east, north, strict=True):
        w = np.linalg.inv([[c[0], c[2]], [c[2], c[1]]])
        normal, right = normal + a.T @ w @ a, right + a.T @ w @ [x, y]
    return np.linalg.solve(normal, right), np.linalg.inv(normal)


def _first_rows(xp, ra, dec, start):
    """Return ra and dec of each object's first row: the origin of its tangent plane; NaN without rows."""
    if len(ra) == 0:
        return xp.full(len(start) - 1, xp.nan), xp.full(len(start) - 1, xp.nan)
    first, is_there = xp.minimum(start[:-1], len(ra) - 1), start[1:] > start[:-1]
    return xp.where(is_there, ra[first], xp.nan), xp.where(is_there, dec[first], xp.nan)


def _tangent_offsets(ra, dec, earth, origin, segment):
    """Return (n, 4): offsets east and north (mas, gnomonic) from the origins, and the parallax factors along them."""
    xp = array_module(ra)
    axes = (unit_vectors(*origin), *tangent_basis(*origin))
    towards = unit_vectors(ra, dec)
    depth = (towards * axes[0][segment]).sum(axis=-1)
    columns = [(towards * axis[segment]).sum(axis=-1) / depth * MAS_PER_RADIAN for axis in axes[1:]]
    columns += [-(earth * axis[segment]).sum(axis=-1) for axis in axes[1:]]
    return xp.ascontiguousarray(xp.stack(columns, axis=-1))


def _weights(xp, covariance):
    """Return (n, 3): the inverse covariances, 1/mas^2."""
    east, north, both = (covariance[:, k] * MAS_PER_DEGREE**2 for k in range(3))
    determinant = east * north - both * both
    return xp.ascontiguousarray(xp.stack([north / determinant, east / determinant, -both / determinant], axis=-1))


def _solved(xp, normal, right, is_moving):
    """Return the parameters (zeros where not free) and their covariance; the matrix is scaled to a unit diagonal first."""
    free = xp.stack([xp.ones_like(is_moving)] * 2 + [is_moving] * 3, axis=-1)
    normal = normal * (free[:, :, None] & free[:, None, :])
    diagonal = xp.where(free, xp.diagonal(normal, axis1=1, axis2=2), 0.0)
    scale = xp.where(diagonal > 0, 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    scaled = normal * scale[:, :, None] * scale[:, None, :]
    scaled = xp.where(xp.eye(PARAMETERS)[None] > 0, 1.0 + 1e-12, scaled)  # no matrix is singular
    inverse = xp.linalg.inv(scaled) * scale[:, :, None] * scale[:, None, :]
    return (inverse * xp.where(free, right, 0.0)[:, None, :]).sum(axis=-1), inverse


def _columns(xp, origin, found, inverse, epoch, is_moving, chi2, n_rows) -> dict:
    axes = (unit_vectors(*origin), *tangent_basis(*origin))
    shifted = axes[0] + (axes[1] * found[:, 0:1] + axes[2] * found[:, 1:2]) / MAS_PER_RADIAN
    ra, dec = sky_from_vectors(shifted)
    is_seen = n_rows > 0
    table = {"ra": ra, "dec": dec, "epoch": epoch}
    table |= {name: xp.sqrt(inverse[:, k, k]) / MAS_PER_DEGREE for k, name in enumerate(("ra_err", "dec_err"))}
    table["ra_dec_cov"] = inverse[:, 0, 1] / MAS_PER_DEGREE**2
    moving = {name: found[:, k] for k, name in enumerate(("pm_ra", "pm_dec", "parallax"), 2)}
    moving |= {f"{name}_err": xp.sqrt(inverse[:, k, k]) for k, name in enumerate(("pm_ra", "pm_dec", "parallax"), 2)}
    moving |= {"pm_ra_pm_dec_cov": inverse[:, 2, 3]}
    moving |= {"pm_ra_parallax_cov": inverse[:, 2, 4], "pm_dec_parallax_cov": inverse[:, 3, 4]}
    table = {name: xp.where(is_seen, column, xp.nan) for name, column in table.items()}
    table |= {name: xp.where(is_moving, column, xp.nan) for name, column in moving.items()}
    table["chi2"] = xp.where(is_seen, chi2, xp.nan)
    return table | {"n_data": xp.where(is_moving, n_rows, 0).astype(xp.int32)}


@hot_loop("space_motion")
def sum_motion_equations(offsets, weights, time, start, normal, right, scalars, n_objects):
    """One object a thread: its normal equations about its epoch, the weighted sum of squares, its nights."""
    for k in numba.prange(n_objects):
        begin, end = start[k], start[k + 1]
        if end == begin:
            continue
        total = moved = 0.0
        nights = 1
        for row in range(begin, end):
            w = weights[row, 0] + weights[row, 1]
            total += w
            moved += w * (time[row] - time[begin])
            if row > begin and time[row] - time[row - 1] > NIGHT_GAP_DAYS:
                nights += 1
        epoch = time[begin] + moved / total
        squares = 0.0
        east, north = np.zeros(PARAMETERS), np.zeros(PARAMETERS)
        east[0] = north[1] = 1.0
        for row in range(begin, end):
            east[2] = north[3] = (time[row] - epoch) / DAYS_PER_YEAR
            east[4], north[4] = offsets[row, 2], offsets[row, 3]
            x, y = offsets[row, 0], offsets[row, 1]
            along = weights[row, 0] * x + weights[row, 2] * y
            across = weights[row, 2] * x + weights[row, 1] * y
            squares += along * x + across * y
            for i in range(PARAMETERS):
                right[k, i] += east[i] * along + north[i] * across
                pull_east = east[i] * weights[row, 0] + north[i] * weights[row, 2]
                pull_north = east[i] * weights[row, 2] + north[i] * weights[row, 1]
                for j in range(i, PARAMETERS):
                    normal[k, i, j] += pull_east * east[j] + pull_north * north[j]
        for i in range(1, PARAMETERS):
            for j in range(i):
                normal[k, i, j] = normal[k, j, i]
        scalars[k, 0], scalars[k, 1], scalars[k, 2] = squares, epoch, nights
