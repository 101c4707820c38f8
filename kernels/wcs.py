"""World coordinates on arrays: the gnomonic projection, alone (TAN) or with SIP or TPV distortion.

Owns the mathematics only; FITS cards are read and written by `nightstream.io.wcs_cards`. A point far outside
the field, where the projection or its distortion has no inverse, comes back as NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.target import array_module

KINDS = ("TAN", "SIP", "TPV")
MAX_ITERATIONS = 30  # Newton needs 3 to 5; more means that there is no solution
CONVERGED_PIX = 1e-10

Term = tuple[int, int, int, float]  # (i, j, k, c) stands for c * x**i * y**j * r**k with r = hypot(x, y)
Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Wcs:
    """Pixel (0-based centres) to ICRS degrees and back, float64, on arrays of any shape, or scalars.

    With (u, v) = (x, y) - crpix the plane coordinates (xi, eta), degrees, are

        TAN:  CD (u, v)
        SIP:  CD (u + A(u, v), v + B(u, v))             Shupe et al. 2005, ADASS XIV, eq. 1-2
        TPV:  (P1(p, q), P2(p, q)) with (p, q) = CD (u, v)   FITS registry of conventions, TPV

    and the sky position is their gnomonic deprojection about ``crval`` (Calabretta & Greisen 2002, eq. 54).
    ``distortion`` holds the two polynomials as tuples of (i, j, k, c), meaning c * x**i * y**j * r**k with
    r = hypot(x, y); it is empty for TAN.
    """

    crval: tuple[float, float]  # ra, dec of the reference point, deg
    crpix: tuple[float, float]  # x, y of the reference point, 0-based pixels
    cd: tuple[tuple[float, float], tuple[float, float]]  # deg / pixel
    kind: str = "TAN"
    distortion: tuple[tuple[Term, ...], ...] = ()
    lonpole: float = 180.0  # native longitude of the celestial pole, deg

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"WCS kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if len(self.distortion) != (0 if self.kind == "TAN" else 2):
            raise InputError(f"a {self.kind} WCS cannot have {len(self.distortion)} distortion polynomials")
        numbers = (*self.crval, *self.crpix, *self.cd[0], *self.cd[1], self.lonpole)
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"WCS must be finite, got crval {self.crval}, crpix {self.crpix}, cd {self.cd}")
        if _determinant(self.cd) == 0.0:
            raise InputError(f"WCS cannot be inverted: the determinant of cd {self.cd} is 0")
        canonical = tuple(tuple(sorted(term for term in terms if term[3] != 0.0)) for terms in self.distortion)
        object.__setattr__(self, "distortion", canonical)  # so that equal functions are equal values

    @classmethod
    def tan(
        cls,
        ra: float,
        dec: float,
        crpix_x: float,
        crpix_y: float,
        scale_arcsec: float,
        angle_deg: float = 0.0,
        flip: bool = True,
    ) -> Wcs:
        """Return a TAN of square pixels.

        ``angle_deg`` is the position angle (north through east) of +y. With ``flip``, the sky as seen from
        Earth: east is to the left of north; without, east is to the right.
        """
        scale, sine, cosine = (
            scale_arcsec / 3600.0,
            math.sin(math.radians(angle_deg)),
            math.cos(math.radians(angle_deg)),
        )
        side = -1.0 if flip else 1.0
        cd = ((side * scale * cosine, scale * sine), (-side * scale * sine, scale * cosine))
        return cls((float(ra), float(dec)), (float(crpix_x), float(crpix_y)), cd)

    @property
    def pixel_scale_arcsec(self) -> float:
        """Side of a square as large as a pixel at the reference point, from the linear part, arcsec."""
        return 3600.0 * math.sqrt(abs(_determinant(self.cd)))

    def sky_from_pixel(self, x, y) -> Pair:
        """Return (ra, dec) in degrees, ra in [0, 360), of 0-based pixel positions; NaN gives NaN."""
        xp = array_module(x, y)
        u, v = _float64(x, xp) - self.crpix[0], _float64(y, xp) - self.crpix[1]
        if self.kind == "SIP":
            u, v = (
                u + _polynomial(self.distortion[0], u, v, xp),
                v + _polynomial(self.distortion[1], u, v, xp),
            )
        xi, eta = _apply(self.cd, u, v)
        if self.kind == "TPV":
            xi, eta = (
                _polynomial(self.distortion[0], xi, eta, xp),
                _polynomial(self.distortion[1], xi, eta, xp),
            )
        return _deproject(*_apply(_rotation(self.lonpole), xi, eta), self.crval, xp)

    def pixel_from_sky(self, ra, dec) -> Pair:
        """Return 0-based (x, y) of sky positions in degrees.

        Distortion is inverted by Newton iteration to better than 1e-9 pixel. Positions 90 degrees or more
        from the reference point, and those where the iteration finds no pixel, are NaN.
        """
        xp = array_module(ra, dec)
        xi, eta = _project(_float64(ra, xp), _float64(dec, xp), self.crval, xp)
        xi, eta = _apply(_inverse(_rotation(self.lonpole)), xi, eta)
        if self.kind == "TPV":
            xi, eta = _solve(self.distortion, xi, eta, CONVERGED_PIX * self.pixel_scale_arcsec / 3600.0, xp)
        u, v = _apply(_inverse(self.cd), xi, eta)
        if self.kind == "SIP":
            u, v = _solve(_with_identity(self.distortion), u, v, CONVERGED_PIX, xp)
        return u + self.crpix[0], v + self.crpix[1]

    def with_affine(self, matrix) -> Wcs:
        """Return the WCS of a frame whose pixels lie at (old_x, old_y) = ``matrix`` (new_x, new_y, 1) here.

        ``matrix`` is 2 x 3. Exact for every kind: SIP polynomials are re-expanded in the new pixels.
        """
        (a, b, c), (d, e, f) = ((float(value) for value in row) for row in matrix)
        linear = ((a, b), (d, e))
        if _determinant(linear) == 0.0:
            raise InputError(f"the affine map {matrix} cannot be inverted")
        crpix = _apply(_inverse(linear), self.crpix[0] - c, self.crpix[1] - f)
        distortion = _substitute(self.distortion, linear) if self.kind == "SIP" else self.distortion
        return replace(self, crpix=crpix, cd=_product(self.cd, linear), distortion=distortion)


def _float64(values, xp: ModuleType):
    return xp.asarray(values, dtype=xp.float64)


def _determinant(m) -> float:
    return m[0][0] * m[1][1] - m[0][1] * m[1][0]


def _inverse(m):
    det = _determinant(m)
    return (m[1][1] / det, -m[0][1] / det), (-m[1][0] / det, m[0][0] / det)


def _apply(m, x, y) -> Pair:
    return m[0][0] * x + m[0][1] * y, m[1][0] * x + m[1][1] * y


def _product(m, n):
    (a, c), (b, d) = _apply(m, n[0][0], n[1][0]), _apply(m, n[0][1], n[1][1])
    return (a, b), (c, d)


def _rotation(lonpole: float):
    """Turn the plane so that the celestial pole is at native longitude 180 degrees, as `_deproject` wants."""
    if lonpole == 180.0:
        return (1.0, 0.0), (0.0, 1.0)
    angle = math.radians(180.0 - lonpole)
    return (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))


def _deproject(xi, eta, crval, xp: ModuleType) -> Pair:
    """From the tangent plane (deg) to the sky: the spherical angles of pole + xi east + eta north."""
    sine, cosine = math.sin(math.radians(crval[1])), math.cos(math.radians(crval[1]))
    east, north = xp.radians(xi), xp.radians(eta)
    forward = cosine - north * sine
    ra = crval[0] + xp.degrees(xp.arctan2(east, forward))
    dec = xp.degrees(xp.arctan2(sine + north * cosine, xp.hypot(east, forward)))
    return ra % 360.0, dec


def _project(ra, dec, crval, xp: ModuleType) -> Pair:
    """From the sky to the tangent plane (deg); NaN on the far hemisphere."""
    sine, cosine = math.sin(math.radians(crval[1])), math.cos(math.radians(crval[1]))
    dra, dec = xp.radians(ra - crval[0]), xp.radians(dec)
    east, forward, up = xp.cos(dec) * xp.sin(dra), xp.cos(dec) * xp.cos(dra), xp.sin(dec)
    height = up * sine + forward * cosine
    height = xp.where(height > 0.0, height, xp.nan)
    return xp.degrees(east / height), xp.degrees((up * cosine - forward * sine) / height)


def _polynomial(terms: tuple[Term, ...], x, y, xp: ModuleType):
    """Return the sum of c x**i y**j r**k over ``terms``. k = -1 occurs in derivatives, times x or y."""
    powers_x, powers_y = (
        _powers(x, max((t[0] for t in terms), default=0)),
        _powers(y, max((t[1] for t in terms), default=0)),
    )
    r = xp.maximum(xp.hypot(x, y), 1e-300) if any(t[2] for t in terms) else None
    total = xp.zeros_like(x)
    for i, j, k, c in terms:
        monomial = c * powers_x[i] * powers_y[j]
        total = total + (monomial * r**k if k else monomial)
    return total


def _powers(x, highest: int) -> list:
    powers = [1.0]
    for _ in range(highest):
        powers.append(powers[-1] * x)
    return powers


@functools.cache
def _derivatives(terms: tuple[Term, ...]) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Return the terms of d/dx and d/dy; d(r**k)/dx = k x r**(k - 2)."""
    along_x = [(i - 1, j, k, c * i) for i, j, k, c in terms if i] + [(i + 1, j, k - 2, c * k) for i, j, k, c in terms if k]
    along_y = [(i, j - 1, k, c * j) for i, j, k, c in terms if j] + [(i, j + 1, k - 2, c * k) for i, j, k, c in terms if k]
    return tuple(along_x), tuple(along_y)


def _with_identity(distortion) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    return ((1, 0, 0, 1.0), *distortion[0]), ((0, 1, 0, 1.0), *distortion[1])


def _solve(polynomials, target_x, target_y, tolerance: float, xp: ModuleType) -> Pair:
    """Return (x, y) where the two polynomials equal the targets, by Newton's method from the targets."""
    x, y = target_x + 0.0, target_y + 0.0
    for _ in range(MAX_ITERATIONS):
        step_x, step_y = _newton_step(polynomials, x, y, target_x, target_y, xp)
        x, y = x + step_x, y + step_y
        miss = xp.maximum(xp.abs(step_x), xp.abs(step_y))
        if not bool((miss > tolerance).any()):
            break
    found = miss <= 10.0 * tolerance
    return xp.where(found, x, xp.nan), xp.where(found, y, xp.nan)


def _newton_step(polynomials, x, y, target_x, target_y, xp: ModuleType) -> Pair:
    miss_x = target_x - _polynomial(polynomials[0], x, y, xp)
    miss_y = target_y - _polynomial(polynomials[1], x, y, xp)
    (a, b), (c, d) = ([_polynomial(terms, x, y, xp) for terms in _derivatives(p)] for p in polynomials)
    det = a * d - b * c
    det = xp.where(det != 0.0, det, xp.nan)
    return (d * miss_x - b * miss_y) / det, (a * miss_y - c * miss_x) / det


def _substitute(distortion, linear) -> tuple[tuple[Term, ...], ...]:
    """Re-expand the polynomials in new variables: L^-1 F(L z), where the old variables are L z."""
    size = 1 + max((i + j for terms in distortion for i, j, _, _ in terms), default=0)
    expanded = [np.zeros((size, size)), np.zeros((size, size))]
    for total, terms in zip(expanded, distortion, strict=True):
        for i, j, _, c in terms:
            total += c * _expand(linear, i, j, size)
    return tuple(_terms(plane) for plane in _apply(_inverse(linear), *expanded))


def _expand(linear, i: int, j: int, size: int) -> np.ndarray:
    """Return coefficients [p, q] of x**p y**q in (l00 x + l01 y)**i (l10 x + l11 y)**j."""
    row = np.ones(1)  # coefficients by the power of y; the power of x is i + j - q
    for factor in [linear[0]] * i + [linear[1]] * j:
        row = np.convolve(row, factor)
    plane = np.zeros((size, size))
    plane[i + j - np.arange(i + j + 1), np.arange(i + j + 1)] = row
    return plane


def _terms(plane: np.ndarray) -> tuple[Term, ...]:
    return tuple((int(i), int(j), 0, float(plane[i, j])) for i, j in zip(*np.nonzero(plane), strict=True))
