"""BLAS runs on one thread once the engine is used."""

import subprocess
import sys

CODE = """
import os, threading
os.environ["OPENBLAS_NUM_THREADS"] = "2"
from nightstream.engine.blas import use_one_blas_thread
from threadpoolctl import threadpool_info
use_one_blas_thread()
seen = []
look = lambda: seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
assert len(seen) >= 2 and set(seen) == {1}, seen
"""


def test_every_thread_sees_one_blas_thread():
    """NumPy's and SciPy's BLAS are limited, for threads started later too, whatever the environment says."""
    subprocess.run([sys.executable, "-c", CODE], check=True)
