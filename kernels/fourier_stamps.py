"""From kernel stamps to transforms on a small Fourier grid, and back to stamps no larger than their power asks for."""

from __future__ import annotations

from nightstream.kernels.target import array_module, scipy_module

GRID = 64  # pixels of the Fourier grid on which kernels are made
SIZES = tuple(range(7, 43, 2))  # sides a stamp may have
LOST_POWER = 1e-4  # of the sum of squares of a stamp that may lie outside of what is kept


def transfer(kernels):
    """Return the Fourier transforms (..., GRID, GRID // 2 + 1) complex128 of kernels (..., k, k), their centre at the origin.

    k is odd and at most GRID - 1; a larger one raises ValueError.
    """
    xp = array_module(kernels)
    k = kernels.shape[-1]
    if k >= GRID:
        raise ValueError(f"kernels of {k} pixels, wanted less than {GRID}")
    padded = xp.zeros((*kernels.shape[:-2], GRID, GRID))
    padded[..., :k, :k] = kernels
    return scipy_module(xp, "fft").rfft2(xp.roll(padded, (-(k // 2), -(k // 2)), axis=(-2, -1)))


def power(transfer):
    """Return |transfer|^2, float64."""
    return transfer.real**2 + transfer.imag**2


def correlation_power(stamp, xp):
    """Return the power spectrum of an autocorrelation stamp (odd, odd) with centre 1: unit mean, never negative.

    (1, 1) ones for white noise: None or a stamp of one pixel.
    """
    if stamp is None or stamp.shape[0] == 1:
        return xp.ones((1, 1))
    return xp.maximum(transfer(xp.asarray(stamp)).real, 0.0)


def mean_power(spectrum):
    """Return the mean over all GRID^2 frequencies of a real spectrum (..., GRID, GRID // 2 + 1), half of which is implied."""
    full = 2 * spectrum.sum(axis=(-2, -1)) - spectrum[..., 0].sum(axis=-1) - spectrum[..., -1].sum(axis=-1)
    return full / GRID**2


def real_stamps(transfer):
    """Return the (..., GRID, GRID) kernels of transforms, their centre at pixel GRID // 2."""
    xp = array_module(transfer)
    image = scipy_module(xp, "fft").irfft2(transfer, s=(GRID, GRID))
    return xp.fft.fftshift(image, axes=(-2, -1))


def variance_stamps(transfer, correlation_power):
    """Return float32 squares of the real-space kernels, scaled to the power they let through from noise of that
    correlation."""
    return scaled_squares(real_stamps(transfer), mean_power(power(transfer) * correlation_power))


def scaled_squares(image, through):
    """Return float32 squares of stamps on the grid, no larger than they must be, that sum to ``through`` each."""
    squares = crop(image, enough(image)) ** 2
    return (squares * (through / squares.sum(axis=(-2, -1)))[..., None, None]).astype(array_module(image).float32)


def crop(image, size):
    """Return the ``size`` pixels, odd, around the centre of stamps on the grid."""
    low = GRID // 2 - size // 2
    return image[..., low : low + size, low : low + size]


def enough(image) -> int:
    """Return the smallest side that keeps all but LOST_POWER of the sum of squares of every stamp on the grid."""
    total = (image**2).sum(axis=(-2, -1))
    for size in SIZES:
        if bool((1 - (crop(image, size) ** 2).sum(axis=(-2, -1)) / total < LOST_POWER).all()):
            return size
    return SIZES[-1]


def lost_power(image, size) -> float:
    """Return the largest fraction of the sum of squares of stamps on the grid that lies outside the ``size`` pixels kept."""
    return float((1 - (crop(image, size) ** 2).sum(axis=(-2, -1)) / (image**2).sum(axis=(-2, -1))).max())
