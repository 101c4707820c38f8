"""The PSF of an image that was convolved: a new `PsfModel` from the old one and the kernels applied."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.convolution import tile_centres
from nightstream.kernels.psf import PsfModel, polynomial_terms
from nightstream.kernels.target import array_module, scipy_module

MAX_NODES = 12  # positions an axis at which the product is sampled


def convolve_psf(psf: PsfModel, kernels, shape, tile_pix, *, order=None) -> PsfModel:
    """Return the PSF of an image of ``shape`` and ``psf`` after `convolve_tiles` with ``kernels`` (ty, tx, k,
    k).

    The product is sampled at tile centres and fitted by a polynomial of ``order`` (default: the PSF's, at
    least 2, fewer when there are fewer tiles). Stamps keep their size; light pushed out of them is lost and
    the sum brought back to 1.
    """
    xp = array_module(kernels)
    x, y = tile_centres(shape, tile_pix, xp=xp)
    picks = [xp.unique(xp.linspace(0, n - 1, min(n, MAX_NODES)).astype(xp.int64)) for n in x.shape]
    nodes = picks[0][:, None], picks[1][None, :]
    x, y, kernels = x[nodes].ravel(), y[nodes].ravel(), kernels[nodes].reshape(-1, *kernels.shape[2:])
    stamps = convolve_same(psf.centred_float64(x, y), kernels)
    order = _affordable(max(psf.order, 2) if order is None else order, picks)
    half_y, half_x = ((max(n, 2) - 1) / 2 for n in shape)
    terms = polynomial_terms(x / half_x - 1, y / half_y - 1, order)
    coefficients = xp.linalg.lstsq(terms, stamps.reshape(len(x), -1), rcond=None)[0]
    return PsfModel(coefficients.reshape(-1, psf.size, psf.size), order, half_x, half_y, half_x, half_y)


def _affordable(order, picks) -> int:
    return min(order, *(len(p) - 1 for p in picks))


def convolve_same(stamps, kernels):
    """Convolve ``stamps`` (n, s, s) each with its own of ``kernels`` (n, k, k); same size, float64, unit
    sums."""
    xp = array_module(stamps)
    fft = scipy_module(xp, "fft")
    s, k = stamps.shape[-1], kernels.shape[-1]
    grid = (fft.next_fast_len(s + k - 1, real=True),) * 2
    product = fft.irfft2(fft.rfft2(stamps, grid) * fft.rfft2(kernels.astype(np.float64), grid), grid)
    same = product[:, k // 2 : k // 2 + s, k // 2 : k // 2 + s]
    return same / same.sum(axis=(1, 2), keepdims=True)
