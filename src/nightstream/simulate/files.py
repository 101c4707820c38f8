"""Raw FITS files as the simulator's camera writes them: a primary header, then one uint16 image a
amplifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightstream.engine.camera import Detector
from nightstream.io.wcs_cards import wcs_to_cards
from nightstream.kernels.wcs import Wcs


def write_raw(path: Path, pixels: np.ndarray, detector: Detector, cards: dict[str, object], wcs: Wcs) -> None:
    """Write one detector exposure. ``pixels`` is uint16 (n_amplifiers, ny, nx); an existing file is
    replaced."""
    from astropy.io import fits

    header = fits.Header(cards)
    header.extend(wcs_to_cards(wcs))
    hdus = fits.HDUList([fits.PrimaryHDU(header=header)])
    for amplifier, image in zip(detector.amplifiers, pixels, strict=True):
        hdus.append(fits.ImageHDU(image, name=str(amplifier.hdu)))
    hdus.writeto(path, overwrite=True)
