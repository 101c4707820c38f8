"""Products come back as they were, and a file is there complete or not at all."""

import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from product_scene import SHAPE, assert_same, make_cutouts, make_pixels, make_products

from nightstream.errors import FileError, InputError
from nightstream.io.hdf5_file import create_file, write_plane
from nightstream.io.products import (
    footprint,
    product_path,
    read_cutouts,
    read_detector_products,
    read_dia_tables,
    read_visit_status,
    write_detector_products,
    write_visit_master,
)
from nightstream.io.rounding import round_to_noise


def files_under(folder):
    """Return every file below ``folder``, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_products_come_back_exactly(tmp_path):
    """Every plane, table, number and text is read back bit by bit."""
    path = write_detector_products(tmp_path, make_products())
    assert path == tmp_path / "visit=2026112200123" / "detector=007.h5"
    assert_same(read_detector_products(path), make_products())


def test_products_without_difference_and_sources(tmp_path):
    """A visit without a template has no difference and empty tables, and no WCS or PSF is no trouble."""
    image = dataclasses.replace(make_products().visit_image, wcs=None, psf=None)
    without = {"difference": None, "dia_sources": {}, "forced_sources": {}, "cutouts": None}
    products = dataclasses.replace(make_products(), visit_image=image, **without)
    assert_same(read_detector_products(write_detector_products(tmp_path, products)), products)


def test_tables_are_read_without_pixels(tmp_path):
    """Tables, summary and what places them on the sky are the ones of the whole product."""
    path, products = write_detector_products(tmp_path, make_products()), make_products()
    tables = read_dia_tables(path)
    assert (tables.shape, tables.njy_per_unit) == (SHAPE, products.visit_image.njy_per_unit)
    for name in ("info", "wcs"):
        assert_same(getattr(tables, name), getattr(products.visit_image, name))
    for name in ("summary", "dia_sources", "forced_sources"):
        assert_same(getattr(tables, name), getattr(products, name))


@pytest.mark.parametrize("n", [0, 1, 4, 90])  # more than one chunk of pixels
def test_cutouts_come_back_exactly(tmp_path, n):
    """Boxes, pixels, masks and PSFs are read back bit by bit."""
    path = write_detector_products(tmp_path, dataclasses.replace(make_products(), cutouts=make_cutouts(n)))
    assert_same(read_cutouts(path), make_cutouts(n))


def test_a_product_without_cutouts_says_so(tmp_path):
    """Older products have none: the whole product is read, its cutouts alone are an error."""
    path = write_detector_products(tmp_path, dataclasses.replace(make_products(), cutouts=None))
    assert read_detector_products(path).cutouts is None
    with pytest.raises(InputError, match="holds no cutouts.*detector=007.h5"):
        read_cutouts(path)


def test_footprint_is_the_outline_of_the_pixels():
    """The corners are those of the outermost pixels, in order around the detector, each once."""
    wcs = make_products().visit_image.wcs
    x, y = wcs.pixel_from_sky(*footprint(wcs, SHAPE).T)
    ny, nx = SHAPE
    np.testing.assert_allclose(x, [-0.5, nx - 0.5, nx - 0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(y, [-0.5, -0.5, ny - 0.5, ny - 0.5], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (257, 255), (0, 5), (65536,), (70000,), (3,)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.float64, np.uint16])
def test_planes_of_any_shape(tmp_path, shape, dtype):
    """Compression by chunks is exact for tiny, odd, empty and flat planes, and for views."""
    plane = (np.random.default_rng(1).random(shape[::-1]) * 1000).astype(dtype).T
    with create_file(tmp_path / "a.h5") as file:
        write_plane(file, "plane", plane)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["plane"][()], plane)
        assert file["plane"].dtype == dtype


def test_without_isal_the_content_is_the_same(tmp_path, monkeypatch):
    """HDF5's own gzip is used where the fast library is missing, and reads back alike."""
    monkeypatch.setitem(sys.modules, "isal", None)
    assert_same(read_detector_products(write_detector_products(tmp_path, make_products())), make_products())


def test_stock_readers_understand_the_file(tmp_path):
    """Plain h5py sees compressed planes and a compound table with units; nothing but deflate and shuffle is needed."""
    with h5py.File(write_detector_products(tmp_path, make_products())) as file:
        plane, table = file["difference/image"], file["dia_sources"]
        assert (plane.compression, plane.shuffle, plane.chunks) == ("gzip", True, (256, 256))
        assert plane.attrs["unit"] == "electron" and file["difference/mask"].attrs["MP_SAT"] == 1
        column = table.dtype.names.index("psfFlux")
        assert table.attrs["unit"][column] == "nJy" and table.attrs["ucd"][column] == "phot.count"
        assert file["visit_image/wcs"].asstr()[()].splitlines()[0].startswith("WCSAXES")
        assert file.attrs["visit"] == 2026112200123


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_the_file(tmp_path):
    """The HDF5 project's own tool can list and decode it."""
    path = write_detector_products(tmp_path, make_products())
    assert subprocess.run(["h5dump", str(path)], stdout=subprocess.DEVNULL).returncode == 0


def fail_fsync(_):
    raise OSError(errno.EIO, "Input/output error")


def fail_write(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "target, broken, message",
    [
        ("os.fsync", fail_fsync, "Input/output error"),
        ("pathlib.Path.write_bytes", fail_write, "No space left on device"),
        ("h5py.Group.create_dataset", fail_write, "No space left on device"),
    ],
)
def test_failed_write_leaves_nothing(tmp_path, monkeypatch, target, broken, message):
    """A disk that is full or broken gives one error naming file, visit and detector, and no file."""
    monkeypatch.setattr(target, broken)
    with pytest.raises(FileError, match=message) as caught:
        write_detector_products(tmp_path, make_products())
    for part in ("visit 2026112200123", "detector 7", "detector=007.h5"):
        assert part in str(caught.value)
    assert files_under(tmp_path) == []


def test_disk_that_fills_while_writing(tmp_path):
    """When the system refuses more bytes half way, nothing partial remains and the older file is untouched."""
    before = write_detector_products(tmp_path, make_products()).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(FileError, match="File too large"):
            write_detector_products(tmp_path, make_products())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_under(tmp_path) == ["visit=2026112200123/detector=007.h5"]
    assert product_path(tmp_path, 2026112200123, 7).read_bytes() == before


def test_any_exception_leaves_nothing(tmp_path):
    """An error of ours keeps its kind and learns where; any other passes through; no file is left."""
    with pytest.raises(KeyboardInterrupt), create_file(tmp_path / "a.h5"):
        raise KeyboardInterrupt
    wrong = dataclasses.replace(make_products(), dia_sources={"flux": np.zeros(1)})
    with pytest.raises(InputError, match="no column flux .*visit 2026112200123, detector 7"):
        write_detector_products(tmp_path, wrong)
    assert files_under(tmp_path) == []


def test_killed_writer_leaves_no_product(tmp_path):
    """A process killed in the middle leaves no file under the product's name; the next writer cleans up after it."""
    path = tmp_path / "a.h5"
    code = (
        "import os\n"
        "from nightstream.io.atomic import complete_or_absent\n"
        f"with complete_or_absent({str(path)!r}) as temporary:\n"
        "    temporary.write_text('half of i')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not path.exists() and len(files_under(tmp_path)) == 1
    with create_file(path) as file:
        file["x"] = 1
    assert files_under(tmp_path) == ["a.h5"]


def test_folder_that_cannot_be_made(tmp_path):
    """A file where a folder should be is named."""
    (tmp_path / "visit=2026112200123").write_text("in the way")
    with pytest.raises(FileError, match="detector=007.h5"):
        write_detector_products(tmp_path, make_products())


def test_unreadable_files_are_named(tmp_path):
    """Missing, truncated and foreign files give a FileError or InputError with the path."""
    path = write_detector_products(tmp_path, make_products())
    with pytest.raises(FileError, match="does not exist .*nothing.h5"):
        read_detector_products(tmp_path / "nothing.h5")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FileError, match="could not read detector products: .*detector=007.h5"):
        read_detector_products(path)
    master = write_visit_master(tmp_path, 1, [])
    with pytest.raises(InputError, match="holds visit, wanted detector products .*visit.h5"):
        read_detector_products(master)


def report(detector, status="done", error="", output=""):
    """Return what the scheduler reports of one detector."""
    counts = {"dia_sources": 4, "forced_sources": 2} if status == "done" else {}
    return SimpleNamespace(
        detector=detector, path="raw.fits", status=status, error=error, output=output, counts=counts, timings_s={"isr": 0.5}
    )  # fmt: skip


def test_visit_master_links_and_tells(tmp_path):
    """The master reaches every finished detector, and says of the others what went wrong."""
    visit = 2026112200123
    write_detector_products(tmp_path, make_products(7))
    failed = report(3, "failed", "raw file is truncated [visit 1, détector 3]")
    path = write_visit_master(tmp_path, visit, [report(7), failed])
    rows = read_visit_status(path)
    assert [(row["detector"], row["status"], row["error"]) for row in rows] == [
        (3, "failed", failed.error),
        (7, "done", ""),
    ]
    assert rows[1]["dia_sources"] == 4 and rows[1]["seconds"] == 0.5
    moved = tmp_path / "elsewhere"
    path.parent.rename(moved)
    with h5py.File(moved / "visit.h5") as file:
        assert set(file["detectors"]) == {"status", "007"}
        assert file["detectors/007/visit_image/image"].shape == SHAPE


def test_master_of_a_rerun_speaks_of_what_is_there(tmp_path):
    """What failed now loses its product; what was not asked for, or has no raw any more, keeps row and product."""
    visit = 2026112200123
    for detector in (3, 5, 7, 9):
        write_detector_products(tmp_path, make_products(detector))
    write_visit_master(tmp_path, visit, [report(3), report(5), report(7), report(9)])
    path = write_visit_master(
        tmp_path, visit, [report(3, "failed", "no"), report(5, "missing", "gone"), report(7), report(8, "missing", "gone")]
    )
    rows = {row["detector"]: (row["status"], row["error"]) for row in read_visit_status(path)}
    done = ("done", "")
    assert rows == {3: ("failed", "no"), 5: done, 7: done, 8: ("missing", "gone"), 9: done}
    assert [file for file in files_under(tmp_path) if "detector" in file] == [
        f"visit={visit}/detector=00{d}.h5" for d in (5, 7, 9)
    ]
    with h5py.File(path) as file:
        assert set(file["detectors"]) == {"status", "005", "007", "009"}


def test_product_of_a_failed_difference_is_kept_and_linked(tmp_path):
    """A detector that failed and left a visit image keeps its file; the status says that it failed."""
    visit = 2026112200123
    output = write_detector_products(tmp_path, make_products(3))
    path = write_visit_master(tmp_path, visit, [report(3, "failed", "no star", str(output))])
    assert [(row["status"], row["error"]) for row in read_visit_status(path)] == [("failed", "no star")]
    with h5py.File(path) as file:
        assert file["detectors/003/visit_image/image"].shape == SHAPE


def test_rounding_keeps_the_noise(tmp_path):
    """Rounded pixels are off by half a step at most, take less space, and say so in the file."""
    pixels = make_pixels(1)
    rounded, step = round_to_noise(pixels, 16)
    assert np.sqrt(200) / 32 < step <= np.sqrt(200) / 16
    error = (rounded.image - pixels.image)[np.isfinite(pixels.image)]
    assert abs(error).max() <= 0.5 * step
    np.testing.assert_array_equal(np.isnan(rounded.image), np.isnan(pixels.image))
    lossless = write_detector_products(tmp_path / "a", make_products())
    path = write_detector_products(tmp_path / "b", make_products(), steps_per_sigma=16)
    assert path.stat().st_size < 0.8 * lossless.stat().st_size
    with h5py.File(path) as file:
        assert file["visit_image/image"].attrs["rounding_step"] == step
        np.testing.assert_array_equal(file["visit_image/image"][()], rounded.image)
