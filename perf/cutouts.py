"""Time what a worker adds for alerts: forced photometry at many positions, cutouts, their FITS files and their HDF5 group.

    python perf/cutouts.py [--positions 100000] [--sources 2000] [--runs 3] [--name cutouts-cpu]

One 4096 x 4096 detector of noise with a PSF that varies by order 2. Checks some of the answers first: fluxes against
`kernels.photometry.psf_flux`, pixels of the FITS files against the stamps. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import record
from astropy.io import fits

from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.config import CutoutConfig
from nightstream.engine.cutouts import cut_stamps
from nightstream.engine.force import force_photometry
from nightstream.engine.measure import forced_flux
from nightstream.engine.values import Cutouts, Exposure, ExposureInfo, MaskedImage, Table
from nightstream.io.alerts.cutout_fits import fits_cutouts
from nightstream.io.hdf5_file import create_file
from nightstream.io.hdf5_values import read_cutouts, write_cutouts
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

SIDE = 4096
WCS = Wcs.tan(150.0, -30.0, SIDE / 2, SIDE / 2, 0.2, angle_deg=20.0)
INFO = ExposureInfo(
    visit=1, detector=1, camera="noise", kind="science", band="r",
    exposure_time_s=30.0, dark_time_s=30.0, midpoint_mjd_tai=61000.0,
)  # fmt: skip


def exposure(rng: np.random.Generator) -> Exposure:
    """Noise of 10 electrons."""
    image = rng.normal(0, 10, (SIDE, SIDE)).astype(np.float32)
    pixels = MaskedImage(image, np.zeros(image.shape, np.int32), np.full(image.shape, 100, np.float32))
    profile = PsfModel.gaussian(2.0).coefficients[0]
    middle = {"x_centre": SIDE / 2, "y_centre": SIDE / 2, "x_scale": SIDE / 2, "y_scale": SIDE / 2}
    psf = PsfModel(np.stack([profile] + [0.01 * profile] * 5), order=2, **middle)
    return Exposure(info=INFO, pixels=pixels, wcs=WCS, psf=psf, njy_per_unit=2.5)


def timed(runs: int, work: Callable[[], object]) -> dict[str, float]:
    """Seconds on the clock and of the cores, after one run to warm up."""
    work()
    clock, cores = [], []
    for _ in range(runs):
        start, core_start = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        cores.append(time.process_time() - core_start)
    return {"median_s": median(clock), "min_s": min(clock), "max_s": max(clock), "core_s": min(cores)}


def check(images: list[Exposure], positions: Table, cutouts: Cutouts) -> None:
    """Some fluxes and some files are right."""
    some = {name: column[:500] for name, column in positions.items()}
    table = force_photometry(images[1], images[0], some)
    np.testing.assert_allclose(table["psf_flux"], forced_flux(images[0], table["x"], table["y"])["flux"], rtol=1e-5, atol=1e-3)
    for k, data in enumerate(fits_cutouts(cutouts, "science", WCS, np.arange(5))):
        area = int(cutouts.size[0]) ** 2
        np.testing.assert_array_equal(fits.getdata(io.BytesIO(data)).ravel(), cutouts.science.image[k * area : (k + 1) * area])


def store(cutouts: Cutouts, path: Path) -> None:
    """Write the cutouts alone, durably."""
    with create_file(path) as file:
        write_cutouts(file, "cutouts", cutouts)


def load(path: Path) -> Cutouts:
    """Read them."""
    with h5py.File(path) as file:
        return read_cutouts(file["cutouts"])


def main() -> None:
    """Check, time, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("positions", 100_000), ("sources", 2000), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--name", default="cutouts-cpu")
    options = parser.parse_args()
    use_one_blas_thread()
    rng = np.random.default_rng(1)
    images = [exposure(rng) for _ in range(3)]
    x, y = rng.uniform(0, SIDE - 1, (2, options.positions))
    ra, dec = WCS.sky_from_pixel(x, y)
    positions = {"ra": ra, "dec": dec, "dia_object_id": np.arange(1, options.positions + 1)}
    n = options.sources
    sources = {"x": x[:n], "y": y[:n], "bbox_size": np.full(n, 20)}
    cutouts = cut_stamps(*images, sources, CutoutConfig())
    check(images, positions, cutouts)
    record.reset_peak_memory()
    before = record.peak_memory_gib()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cutouts.h5"
        results = {
            "force_photometry": timed(options.runs, lambda: force_photometry(images[1], images[0], positions)),
            "cut_stamps": timed(options.runs, lambda: cut_stamps(*images, sources, CutoutConfig())),
            "fits_cutouts": timed(options.runs, lambda: fits_cutouts(cutouts, "science", WCS)),
            "write_cutouts": timed(options.runs, lambda: store(cutouts, path)),
            "read_cutouts": timed(options.runs, lambda: load(path)),
        }
        size = path.stat().st_size
    rates = {
        "positions_per_core_second": options.positions / results["force_photometry"]["core_s"],
        "fits_files_per_core_second": n / results["fits_cutouts"]["core_s"],
        "stored_bytes_per_source": size / n,
        "peak_rss_growth_gib": record.peak_memory_gib() - before,
    }
    for name, value in rates.items():
        print(f"{name:28s} {value:12.3f}")
    for name, seconds in results.items():
        print(f"{name:28s} {seconds['median_s'] * 1e3:9.1f} ms ({seconds['core_s'] * 1e3:.1f} ms of the cores)")
    made = {"header": record.header("cpu"), "positions": options.positions, "sources": n, "results": results, "rates": rates}
    print(record.write(options.name, made))


if __name__ == "__main__":
    main()
