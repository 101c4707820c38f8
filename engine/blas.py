"""One BLAS thread: sums then have one order on every machine, and small products do not wait for threads."""

from __future__ import annotations

import functools


@functools.cache
def use_one_blas_thread() -> None:
    """Limit BLAS to one thread in this process, for good.

    The matrices here are many and small. With one thread the same input gives the same bits, in this process or in a Ray actor,
    whatever OPENBLAS_NUM_THREADS says. It is not lifted again: OpenBLAS does not take back a limit reliably once several threads
    have set one.
    """
    import scipy.linalg  # noqa: F401  its BLAS must be loaded before it can be limited
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")
