"""The shim itself: CUDA semantics on the CPU, races and overruns made visible, arguments checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cudashim import loader

SAMPLES = Path(loader.__file__).with_name("samples.cu")
pytestmark = pytest.mark.skipif(not loader.has_compiler(), reason="g++ is absent")
BLOCK = (64,)


@pytest.fixture(scope="module")
def samples():
    return loader.load(SAMPLES)


def mirrored(samples, kernel, order):
    a = np.arange(256, dtype=np.float32)
    out = np.full_like(a, -1)
    samples.launch(kernel, (4,), BLOCK, (a, out), order=order)
    return np.array_equal(out, a.reshape(4, 64)[:, ::-1].ravel())


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_barrier_makes_every_thread_order_agree(samples, order):
    """A kernel with its barrier gives the right answer whichever thread runs first."""
    assert mirrored(samples, "mirror", order)


def test_missing_barrier_shows(samples):
    """Without its barrier the same kernel is wrong in some order."""
    assert not all(mirrored(samples, "racy_mirror", order) for order in (0, 1, 2))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_shuffles_and_dynamic_shared_memory_sum_a_block(samples, order):
    """Integers add exactly, so warp shuffles and shared memory must give the exact sum of each block."""
    a = np.arange(500, dtype=np.float32)
    sums = np.zeros(4)
    samples.launch("block_sum", (4,), (128,), (a, sums, np.int32(500)), shared_bytes=4 * 8, order=order)
    np.testing.assert_array_equal(sums, [a[i : i + 128].sum() for i in range(0, 500, 128)])


def test_multiply_and_add_round_separately(samples):
    """The product is rounded before the sum, as with --fmad=false on the device and as NumPy does."""
    a, b, c = np.random.default_rng(1).standard_normal((3, 1000)).astype(np.float32)
    out = np.empty_like(a)
    samples.launch("multiply_add", (16,), BLOCK, (a, b, c, out, np.int32(1000)))
    np.testing.assert_array_equal(out, a * b + c)


def test_scalars_of_every_type_arrive(samples):
    """int, unsigned, long long, float, double and unsigned char reach the kernel unharmed."""
    out = np.zeros(1)
    scalars = np.int32(-1), np.uint32(2**31), np.int64(2**40), np.float32(0.5), np.float64(0.25), np.uint8(7)
    samples.launch("add_scalars", (1,), (1,), (out, *scalars))
    assert out[0] == sum(float(s) for s in scalars)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.zeros(4, np.float32), np.zeros(4, np.float32)), "got 2 arguments, the .cu kernel takes 3"),
        ((np.zeros(4), np.zeros(4, np.float32), np.int32(4)), "argument 0 is ndarray of float64"),
        ((np.zeros(4, np.float32), np.float32(0), np.int32(4)), "argument 1 is float32 of float32"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), np.int64(4)), "argument 2 is int64"),
    ],
)
def test_arguments_that_disagree_with_the_source_are_refused(samples, args, message):
    """Number, kind and type of the arguments are checked against the kernel's own parameter list."""
    with pytest.raises(TypeError, match=message):
        samples.launch("copy", (1,), BLOCK, args)


def test_only_kernels_that_wait_get_fibers():
    """Barriers are found in the kernel and in the helpers it calls, nowhere else."""
    text = SAMPLES.read_text() + SAMPLES.with_suffix(".cuh").read_text()
    assert loader.kernels_with_barriers(text) >= {"mirror", "racy_mirror", "block_sum", "warp_sum"}
    assert not loader.kernels_with_barriers(text) & {"copy", "add_scalars", "multiply_add"}


def test_a_source_that_does_not_compile_says_why(tmp_path):
    """The compiler's message names the `.cu` file and line."""
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void broken(int n) {\n  undeclared = n;\n}\n')
    with pytest.raises(RuntimeError, match=r"broken\.cu:2.*undeclared"):
        loader.load(broken)


OVERRUN = """
import sys
import numpy as np
from cudashim import loader
from pathlib import Path
samples = loader.load(Path(sys.argv[1]), loader.SANITIZED)
a, out = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
samples.launch("copy", (16,), (64,), (a, out, np.int32(1000 + int(sys.argv[2]))))
print("finished")
"""


PRODUCTION = """
import test_combine
import test_isr
from cudashim import loader
with loader.host_cuda(flags=loader.SANITIZED):
    test_combine.combine_frames(*test_combine.spoiled(5, (13, 17)))
    arrays, shape, options = test_isr.scene()
    test_isr.remove_signature(*arrays, test_isr.amplifiers(), shape, **options)
print("finished")
"""


def run_sanitized(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run ``script`` in a new interpreter that has the address sanitizer in it."""
    library = subprocess.run([loader.COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(library.stdout.strip()).is_absolute():
        pytest.skip("libasan is absent")
    paths = [str(Path(loader.__file__).parents[1]), *sys.path]
    environment = {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": ":".join(p for p in paths if p),
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)


def test_out_of_bounds_is_reported_at_its_line():
    """One element past the end stops the run with the `.cu` line; within bounds nothing is said."""
    assert run_sanitized(OVERRUN, str(SAMPLES), "0").stdout.strip() == "finished"
    overrun = run_sanitized(OVERRUN, str(SAMPLES), "1")
    assert overrun.returncode and "finished" not in overrun.stdout
    assert "heap-buffer-overflow" in overrun.stderr and "samples.cu" in overrun.stderr


def test_production_kernels_stay_in_bounds():
    """Assembly and combination read and write nothing outside their arrays, at odd shapes."""
    done = run_sanitized(PRODUCTION)
    assert done.stdout.strip() == "finished", done.stderr
