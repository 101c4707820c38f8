"""Polynomials of two variables as tuples of terms: values, that hash and compare; evaluated, derived, re-expanded."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

Term = tuple[int, int, int, float]  # (i, j, k, c) stands for c * x**i * y**j * r**k with r = hypot(x, y)
Terms = tuple[Term, ...]
Polynomials = tuple[Terms, ...]  # one for each axis of the result


def evaluate(terms: Terms, x, y, xp: ModuleType):
    """Return the sum of c x**i y**j r**k over ``terms``, float64 of x's shape. k = -1 occurs in derivatives, times x or y."""
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


@functools.cache
def derivatives(terms: Terms) -> tuple[Terms, Terms]:
    """Return the terms of d/dx and d/dy; d(r**k)/dx = k x r**(k - 2)."""
    along_x = [(i - 1, j, k, c * i) for i, j, k, c in terms if i] + [(i + 1, j, k - 2, c * k) for i, j, k, c in terms if k]
    along_y = [(i, j - 1, k, c * j) for i, j, k, c in terms if j] + [(i, j + 1, k - 2, c * k) for i, j, k, c in terms if k]
    return tuple(along_x), tuple(along_y)


def canonical(polynomials: Polynomials) -> Polynomials:
    """Return the terms in order and those of 0 left out, so that equal functions are equal values."""
    return tuple(tuple(sorted(term for term in terms if term[3] != 0.0)) for terms in polynomials)


def add(first: Polynomials, second: Polynomials) -> Polynomials:
    """Return the sums, axis by axis."""
    return tuple(_sum(one + two) for one, two in zip(first, second, strict=True))


def mix(matrix, polynomials: Polynomials) -> Polynomials:
    """Return the 2 x 2 ``matrix`` times the two polynomials."""
    return tuple(_sum(tuple((i, j, k, m * c) for m, terms in zip(row, polynomials, strict=True) for i, j, k, c in terms))
                 for row in matrix)  # fmt: skip


def substitute(polynomials: Polynomials, affine) -> Polynomials:
    """Return F(``affine`` (x, y, 1)) as polynomials of x, y; ``affine`` is 2 x 3, and no term may have a power of r."""
    size = 1 + max((i + j for terms in polynomials for i, j, _, _ in terms), default=0)
    planes = [sum((c * _expand(affine, i, j, size) for i, j, _, c in terms), np.zeros((size, size))) for terms in polynomials]
    return tuple(tuple((int(i), int(j), 0, float(p[i, j])) for i, j in zip(*np.nonzero(p), strict=True)) for p in planes)


def _powers(x, highest: int) -> list:
    powers = [1.0]
    for _ in range(highest):
        powers.append(powers[-1] * x)
    return powers


def _sum(terms: Terms) -> Terms:
    total: dict[tuple[int, int, int], float] = {}
    for i, j, k, c in terms:
        total[i, j, k] = total.get((i, j, k), 0.0) + c
    return tuple((*powers, c) for powers, c in total.items() if c != 0.0)


def _expand(affine, i: int, j: int, size: int) -> np.ndarray:
    """Return coefficients [p, q] of x**p y**q in (a00 x + a01 y + a02)**i (a10 x + a11 y + a12)**j."""
    plane = np.zeros((size, size))
    plane[0, 0] = 1.0
    for a, b, c in [affine[0]] * i + [affine[1]] * j:
        product = c * plane
        product[1:] += a * plane[:-1]
        product[:, 1:] += b * plane[:, :-1]
        plane = product
    return plane
