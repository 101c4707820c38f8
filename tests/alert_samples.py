"""Alerts as decoded packets, for tests, with a known light curve."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from nightstream.io.alerts.avro_schema import record_fields

MJD = 61041.25
SHAPE = 31


def fits_stamp(image: np.ndarray, ra: float, dec: float, *, with_mask: bool = True) -> bytes:
    """A cutout as FITS: image, variance, mask, PSF; the position at the middle pixel."""
    from astropy.io import fits

    middle = image.shape[0] // 2
    primary = fits.PrimaryHDU(image.astype(np.float32))
    cards = {"BUNIT": "nJy", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": middle + 1, "CRPIX2": middle + 1}
    cards |= {"CRVAL1": ra, "CRVAL2": dec, "CD1_1": -5.6e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 5.6e-5, "ROTPA": 12.5}
    primary.header.update(cards)
    planes = [fits.ImageHDU(np.full(image.shape, 100.0, np.float32), name="UNCERT")]
    if with_mask:
        planes.append(fits.ImageHDU(np.zeros(image.shape, np.int32), name="MASK"))
    planes.append(fits.ImageHDU(gaussian(25, 2.0, 12, 12).astype(np.float32), name="PSFIMAGE"))
    content = io.BytesIO()
    fits.HDUList([primary, *planes]).writeto(content)
    return content.getvalue()


def gaussian(size: int, sigma: float, x: float, y: float) -> np.ndarray:
    """A unit-sum Gaussian."""
    grid_y, grid_x = np.mgrid[:size, :size]
    return np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def source(number: int, mjd: float, flux: float, *, band: str = "r", **more: Any) -> dict[str, Any]:
    """A diaSource record; the columns that people look at."""
    mjd, flux = float(mjd), float(flux)
    row = {
        "diaSourceId": number, "visit": 2026010100000 + number % 1000, "detector": 7, "diaObjectId": 900, "ssObjectId": None,
        "midpointMjdTai": mjd, "ra": 150.1, "dec": -2.2, "raErr": 3e-5, "decErr": 4e-5, "x": 1000.5, "y": 2000.25,
        "snr": flux / 100.0, "psfFlux": flux, "psfFluxErr": 100.0, "apFlux": flux * 1.02, "apFluxErr": 150.0,
        "scienceFlux": flux + 500.0, "scienceFluxErr": 110.0, "templateFlux": 500.0, "templateFluxErr": 20.0,
        "reliability": 0.97, "band": band, "isDipole": False, "isNegative": flux < 0, "trailLength": math.nan,
    }  # fmt: skip
    return row | more


def forced(number: int, mjd: float, flux: float | None, *, band: str = "r") -> dict[str, Any]:
    """A diaForcedSource record."""
    mjd, flux = float(mjd), flux if flux is None else float(flux)
    return {
        "diaForcedSourceId": number, "diaObjectId": 900, "visit": 2026010100000 + number, "detector": 7, "ra": 150.1, "dec": -2.2,
        "midpointMjdTai": mjd, "psfFlux": flux, "psfFluxErr": 100.0, "scienceFlux": flux, "scienceFluxErr": 110.0, "band": band,
    }  # fmt: skip


def sample_alert(seed: int = 1, *, shape: int = SHAPE, flux: float = 9000.0, moving: bool = False) -> dict[str, Any]:
    """A supernova two weeks after its first detection, in g and r, between forced fluxes and one epoch without any."""
    rng = np.random.default_rng(seed)
    middle = shape // 2
    star = flux * gaussian(shape, 2.0, middle, middle)
    galaxy = 3 * flux * gaussian(shape, 5.0, middle + 4, middle - 2)
    noise = [rng.normal(0, 10.0, (shape, shape)) for _ in range(3)]
    planes = {"Science": galaxy + star + noise[0], "Template": galaxy + noise[1], "Difference": star + noise[2]}
    days = np.array([-13.0, -9.0, -8.9, -5.0, -1.0])
    history = [source(101 + i, MJD + day, flux * np.exp(-((day / 8) ** 2)), band="gr"[i % 2]) for i, day in enumerate(days)]
    fluxes = [*rng.normal(0, 100, 5), None, *(row["psfFlux"] for row in history)]
    times = [*np.linspace(-40, -20, 5), -18.0, *days]
    epochs = zip(times, fluxes, strict=True)
    packet = {
        "diaSourceId": 1234567890123, "observation_reason": "science", "target_name": "COSMOS",
        "diaSource": source(1234567890123, MJD, flux), "prvDiaSources": history,
        "prvDiaForcedSources": [forced(i, MJD + day, f, band="gr"[i % 2]) for i, (day, f) in enumerate(epochs)],
        "diaObject": {"diaObjectId": 900, "ra": 150.1, "dec": -2.2, "nDiaSources": 6, "firstDiaSourceMjdTai": MJD - 13.0,
                      "r_psfFluxMean": 5000.0, "r_psfFluxNdata": 3, "validityStartMjdTai": MJD},
        "ssSource": None, "mpc_orbits": None,
    }  # fmt: skip
    packet |= {f"cutout{name}": fits_stamp(plane, 150.1, -2.2) for name, plane in planes.items()}
    if moving:
        packet |= {"diaObject": None, "prvDiaSources": [], "prvDiaForcedSources": []}
        packet["ssSource"] = {"ssObjectId": 42, "designation": "2001 SB97", "diaSourceId": 1234567890123, "ephOffset": 0.05}
        packet["diaSource"] |= {"diaObjectId": None, "ssObjectId": 42}
    return packet


def encodable(packet: dict[str, Any]) -> dict[str, Any]:
    """The packet with every field of its schema: null, or zero where null may not be."""
    many, one = {"prvDiaSources": "diaSource", "prvDiaForcedSources": "diaForcedSource"}, ("diaSource", "diaObject", "ssSource")
    whole = packet | {name: [completed(row, record) for row in packet[name]] for name, record in many.items()}
    return whole | {name: completed(packet[name], name) for name in one if packet[name]}


def completed(row: dict[str, Any], record: str) -> dict[str, Any]:
    """One record with every field of the schema."""
    fields = record_fields(record)
    zeros = {column.apdb: None if nullable else np.zeros((), column.dtype).item() for column, nullable in fields}
    return zeros | row
