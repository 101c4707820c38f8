"""Read a compressed raw of 16 amplifiers of 2048 x 576 pixels: file to one array, beside astropy in the same run.

    python perf/decode.py [--runs 5] [--name decode-cpu]

Pixels of int32, as survey raws are, compressed by Rice and by gzip in both orders of bytes, and of uint16, of noise on a bias
level. Checks that every bit is astropy's. Times the whole file, from the disk's cache, and the decoding alone, on one thread
and on two. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import record
from astropy.io import fits

from nightstream.io.fits_file import open_fits
from nightstream.io.tile_compression import CompressedImage, compressed_image, decode_stack

SHAPE = (16, 2048, 576)
LEVEL, NOISE = 20_000, 8.0  # adu
KINDS = (("RICE_1", "int32"), ("RICE_1", "uint16"), ("GZIP_1", "int32"), ("GZIP_2", "int32"))


def write_raw(path: Path, compression: str, dtype: str) -> np.ndarray:
    """Write the raw and return its pixels."""
    pixels = np.random.default_rng(1).normal(LEVEL, NOISE, SHAPE).astype(dtype)
    hdus = [fits.CompImageHDU(p, name=f"C{n:02d}", compression_type=compression) for n, p in enumerate(pixels)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return pixels


def read_ours(path: Path) -> np.ndarray:
    with open_fits(path) as file:
        stack, whole = decode_stack([compressed_image(file, index) for index in range(1, len(file.hdus))])
    if not whole.all():
        raise SystemExit("wrong answer: damaged tiles")
    return stack


def read_astropy(path: Path) -> np.ndarray:
    with fits.open(path) as hdus:
        return np.stack([hdu.data for hdu in hdus[1:]])


def images_of(path: Path) -> list[CompressedImage]:
    with open_fits(path) as file:
        return [compressed_image(file, index) for index in range(1, len(file.hdus))]


def seconds_of(threads: int, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of all cores."""
    numba.set_num_threads(threads)
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def measure(path: Path, runs: int) -> dict[str, dict]:
    """The quickest run of every reader after one to warm up. They take turns: what else the machine does meets them all."""
    images = images_of(path)
    readers = {"astropy": (1, lambda: read_astropy(path))}
    for threads in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        readers[f"file, {threads}"] = (threads, lambda: read_ours(path))
        readers[f"decode, {threads}"] = (threads, lambda: decode_stack(images))
    rounds = [{who: seconds_of(*reader) for who, reader in readers.items()} for _ in range(runs + 1)]
    least = {who: min(row[who] for row in rounds[1:]) for who in readers}
    return {
        who: {
            "seconds": round(seconds, 4),
            "core_s": round(core_seconds, 4),
            "mpix_per_s": round(np.prod(SHAPE) / 1e6 / seconds, 1),
        }
        for who, (seconds, core_seconds) in least.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--name", default="decode-cpu")
    args = parser.parse_args()
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            name = " ".join(kind)
            path = Path(folder) / f"{name}.fits"
            pixels = write_raw(path, *kind)
            if not all(np.array_equal(read(path), pixels) for read in (read_ours, read_astropy)):
                raise SystemExit(f"wrong answer: pixels of {name} differ")
            costs[name] = measure(path, args.runs)
            for who, cost in costs[name].items():
                ratio = costs[name]["astropy"]["seconds"] / cost["seconds"]
                speed = f"{cost['seconds'] * 1e3:6.0f} ms | {cost['mpix_per_s']:6.0f} Mpix/s | {ratio:.1f}x astropy"
                print(f"decode 16x2048x576 {name:<13} | {who:<9} | {speed}", flush=True)
    print(record.write(args.name, {"header": record.header("cpu"), "shape": SHAPE, "runs": args.runs, "costs": costs}))


if __name__ == "__main__":
    main()
