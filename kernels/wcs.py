"""World coordinates on arrays: the gnomonic projection, alone (TAN) or with SIP or TPV distortion.

Owns the mathematics only; FITS cards are read and written by `nightstream.io.wcs_cards`. A point far outside
the field, where the projection or its distortion has no inverse, comes back as NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from nightstream.errors import InputError
from nightstream.kernels.distortion import Distortion
from nightstream.kernels.polynomial import Polynomials, add, canonical, derivatives, evaluate, mix, substitute
from nightstream.kernels.target import array_module

KINDS = ("TAN", "SIP", "TPV")
MAX_ITERATIONS = 30  # Newton needs 3 to 5; more means that there is no solution
CONVERGED_PIX = 1e-10

IDENTITY: Polynomials = (((1, 0, 0, 1.0),), ((0, 1, 0, 1.0),))
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
    distortion: Polynomials = ()
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
        object.__setattr__(self, "distortion", canonical(self.distortion))

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
        """Side of a square as large as a pixel, from the linear part, arcsec."""
        return 3600.0 * math.sqrt(abs(_determinant(self.cd)))

    def sky_from_pixel(self, x, y) -> Pair:
        """Return (ra, dec) in degrees, ra in [0, 360), of 0-based pixel positions; NaN gives NaN."""
        xp = array_module(x, y)
        plane = self._plane_from_pixel(_float64(x, xp), _float64(y, xp), xp)
        return _deproject(*_apply(_rotation(self.lonpole), *plane), self.crval, xp)

    def pixel_from_sky(self, ra, dec) -> Pair:
        """Return 0-based (x, y) of sky positions in degrees.

        Distortion is inverted by Newton iteration to better than 1e-9 pixel. Positions 90 degrees or more
        from the reference point, and those where the iteration finds no pixel, are NaN.
        """
        xp = array_module(ra, dec)
        xi, eta = self._plane_from_sky(_float64(ra, xp), _float64(dec, xp), xp)
        if self.kind == "TPV":
            xi, eta = _solve(self.distortion, xi, eta, CONVERGED_PIX * self.pixel_scale_arcsec / 3600.0, xp)
        u, v = _apply(_inverse(self.cd), xi, eta)
        if self.kind == "SIP":
            u, v = _solve(add(IDENTITY, self.distortion), u, v, CONVERGED_PIX, xp)
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
        distortion = _conjugate(self.distortion, linear) if self.kind == "SIP" else self.distortion
        return replace(self, crpix=crpix, cd=_product(self.cd, linear), distortion=distortion)

    def offset_to_sky(self, x, y, ra, dec) -> Pair:
        """Return (dx, dy) from pixels to sky positions, in the tangent plane measured in pixels of the linear part.

        0 where `sky_from_pixel` gives that position. NaN in gives NaN out, as do positions on the far hemisphere.
        """
        xp = array_module(x, y, ra, dec)
        x, y, ra, dec = (_float64(values, xp) for values in (x, y, ra, dec))
        (xi, eta), (xi_here, eta_here) = self._plane_from_sky(ra, dec, xp), self._plane_from_pixel(x, y, xp)
        return _apply(_inverse(self.cd), xi - xi_here, eta - eta_here)

    def with_distortion(self, distortion: Distortion) -> Wcs:
        """Return the WCS in which ``distortion`` is added to what `offset_to_sky` measures from.

        Exact for every kind: a TPV keeps its CD and gets more terms; the others become a SIP whose CD is the derivative at
        ``distortion.centre``, so that it stays near the truth when the reference point is far off the detector. Terms of
        order 0 and 1 then stand among those of the SIP. What is left without distortion is a TAN.
        """
        added = distortion.terms_about(*self.crpix)
        if self.kind == "TPV":
            return replace(self, distortion=add(self.distortion, _conjugate(added, _inverse(self.cd))))
        shift_x, shift_y = (c - p for c, p in zip(distortion.centre, self.crpix, strict=True))
        whole = add(add(IDENTITY, self.distortion or ((), ())), added)
        constant, linear, rest = _by_degree(substitute(whole, ((1.0, 0.0, shift_x), (0.0, 1.0, shift_y))))
        back_x, back_y = _apply(_inverse(linear), *constant)
        terms = mix(_inverse(linear), substitute(rest, ((1.0, 0.0, -back_x), (0.0, 1.0, -back_y))))
        crpix = distortion.centre[0] - back_x, distortion.centre[1] - back_y
        kind, terms = ("SIP", terms) if any(terms) else ("TAN", ())
        return replace(self, crpix=crpix, cd=_product(self.cd, linear), kind=kind, distortion=terms)

    def _plane_from_pixel(self, x, y, xp: ModuleType) -> Pair:
        u, v = x - self.crpix[0], y - self.crpix[1]
        if self.kind == "SIP":
            u, v = (
                u + evaluate(self.distortion[0], u, v, xp),
                v + evaluate(self.distortion[1], u, v, xp),
            )
        xi, eta = _apply(self.cd, u, v)
        if self.kind == "TPV":
            xi, eta = (
                evaluate(self.distortion[0], xi, eta, xp),
                evaluate(self.distortion[1], xi, eta, xp),
            )
        return xi, eta

    def _plane_from_sky(self, ra, dec, xp: ModuleType) -> Pair:
        return _apply(_inverse(_rotation(self.lonpole)), *_project(ra, dec, self.crval, xp))


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
    miss_x = target_x - evaluate(polynomials[0], x, y, xp)
    miss_y = target_y - evaluate(polynomials[1], x, y, xp)
    (a, b), (c, d) = ([evaluate(terms, x, y, xp) for terms in derivatives(p)] for p in polynomials)
    det = a * d - b * c
    det = xp.where(det != 0.0, det, xp.nan)
    return (d * miss_x - b * miss_y) / det, (a * miss_y - c * miss_x) / det


def _conjugate(polynomials: Polynomials, linear) -> Polynomials:
    """Return the polynomials in new variables on both sides: L^-1 F(L z), where the old variables are L z."""
    return mix(_inverse(linear), substitute(polynomials, [(*row, 0.0) for row in linear]))


def _by_degree(polynomials: Polynomials):
    """Return the constants (2,), the linear part 2 x 2, and the polynomials of the higher terms."""
    found = [{(i, j): c for i, j, _, c in terms} for terms in polynomials]
    constant, linear = ([tuple(f.get(p, 0.0) for p in powers) for f in found] for powers in ([(0, 0)], [(1, 0), (0, 1)]))
    rest = tuple(tuple(term for term in terms if term[0] + term[1] > 1) for terms in polynomials)
    return [c for (c,) in constant], tuple(linear), rest
