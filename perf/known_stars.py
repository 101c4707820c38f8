"""Stars on a sky of known noise, one in every 45 x 45 pixels: a scene of which all is known, for the kernels' benchmarks.

The PSF is a round Gaussian sampled at pixel centres and the noise the same everywhere, so that the errors of a good
measurement can be told in closed form: with S/N that of the flux, ``sqrt(2) sigma / SNR`` of a position along an axis and
``sigma / SNR`` of the width. Stars lie 25 pixels apart at least, and 12 from the border: none disturbs another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nightstream.kernels.psf import PsfModel

SIGMA_PIX = 1.7  # of the PSF: an FWHM of 4.0 pixels
SKY_NOISE = 10.0  # of every pixel
CELL, JITTER = 45, 10.0  # pixels: one star in every cell, so far from its middle at most
HALF = 15  # pixels of the square in which a star is drawn: beyond, there is 1e-17 of its peak
PSF_SIDE = 25  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class StarScene:
    """Planes (side, side) as the kernels take them, and (n,) columns of the truth."""

    image: np.ndarray  # float32, background subtracted
    mask: np.ndarray  # int32
    variance: np.ndarray  # float32
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    snr: np.ndarray  # of a fit of the flux
    sigma_pix: float

    @property
    def planes(self) -> dict[str, Any]:
        """The pixels by the names of the kernels' arguments."""
        return {"image": self.image, "mask": self.mask, "variance": self.variance}

    @property
    def psf(self) -> PsfModel:
        """The true PSF."""
        return PsfModel.gaussian(self.sigma_pix, PSF_SIDE)

    def position_error(self, index=slice(None)) -> np.ndarray:
        """Return the error, pixels along an axis, of a position fitted together with the flux."""
        return np.sqrt(2) * self.sigma_pix / self.snr[index]


def make_scene(side: int, *, snr=(5.0, 500.0), sigma_pix: float = SIGMA_PIX, scale: float = 1.0, seed: int = 1) -> StarScene:
    """Draw stars whose S/N is spread evenly in its logarithm; ``scale`` and ``sigma_pix`` leave their places and order alone.

    ``snr`` is that of stars with the usual PSF at scale 1.
    """
    rng = np.random.default_rng(1)
    cells = (np.arange(side // CELL) + 0.5) * CELL - 0.5
    y, x = (c.ravel() + rng.uniform(-JITTER, JITTER, c.size) for c in np.meshgrid(cells, cells, indexing="ij"))
    flux = scale * flux_error(SIGMA_PIX) * np.exp(rng.uniform(*np.log(snr), x.size))
    image = np.random.default_rng(seed).normal(0, SKY_NOISE, (side, side))
    add_stars(image, x, y, flux, sigma_pix)
    return StarScene(
        image=image.astype(np.float32), mask=np.zeros(image.shape, np.int32),
        variance=np.full(image.shape, SKY_NOISE**2, np.float32), x=x, y=y, flux=flux, snr=flux / flux_error(sigma_pix),
        sigma_pix=sigma_pix,
    )  # fmt: skip


def flux_error(sigma_pix: float) -> float:
    """Return the error of a flux fitted alone: the sky's noise in 4 pi sigma^2 pixels."""
    return SKY_NOISE * np.sqrt(4 * np.pi) * sigma_pix


def add_stars(image, x, y, flux, sigma_pix: float) -> None:
    """Add Gaussians to ``image`` in place."""
    column, row = (np.rint(c).astype(int) for c in (x, y))
    offset = np.arange(-HALF, HALF + 1)
    across, along = (
        np.exp(-0.5 * ((pixel - c)[:, None] + offset) ** 2 / sigma_pix**2) / (np.sqrt(2 * np.pi) * sigma_pix)
        for pixel, c in ((row, y), (column, x))
    )
    yy, xx = row[:, None, None] + offset[:, None], column[:, None, None] + offset
    light = flux[:, None, None] * across[:, :, None] * along[:, None, :]
    seen = (yy >= 0) & (yy < image.shape[0]) & (xx >= 0) & (xx < image.shape[1])
    np.add.at(image, (np.where(seen, yy, 0), np.where(seen, xx, 0)), np.where(seen, light, 0.0))
