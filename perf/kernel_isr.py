"""Overscan levels and the way from counts to electrons, beside ccdproc, astropy and plain array expressions.

    python perf/kernel_isr.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-isr-cpu]

The raw frame has 16 amplifiers in two rows of eight, read out towards the middle, and 64 overscan columns each. All get the
same: levels are measured in cases of their own; for the rest they are given. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import astropy.units as u
import contest
import numpy as np
from astropy.modeling.models import Polynomial1D
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.stats import sigma_clipped_stats
from contest import DIRECT, OURS, Case

from nightstream.kernels import overscan
from nightstream.kernels.isr import AmplifierTable, CalibrationPlane, remove_signature
from nightstream.kernels.mask import MaskPlane

PER_ROW = 8  # amplifiers side by side, in each of two rows
OVERSCAN = 64  # columns
GAIN, READ_NOISE_ADU = 1.6, 5.0
SATURATION, SUSPECT = 60000.0, 57000.0  # adu
DARK_TIME_S = 30.0
BIAS, DARK, FLAT = (5.0, 3.0, 2.0), (0.1, 0.01, 1e-4), (1.0, 0.03, 1e-6)  # mean, scatter, variance of their pixels
LEVEL_SIGMA = 6  # passed by one of 5e8 levels, of which there are 3e4
STEPS = 12  # roundings on the way from a count to an electron


def cases(side: int) -> Iterator[Case]:
    """Three kinds of levels, and signature removal, of a detector of ``side`` pixels."""
    rng = np.random.default_rng(1)
    truth = 1000 + np.linspace(0, 8, side // 2) + rng.uniform(0, 200, (2 * PER_ROW, 1))  # adu, drifting down the rows
    raw = raw_frame(rng, truth, side // PER_ROW)
    yield from level_cases(np.ascontiguousarray(raw[:, :, -OVERSCAN:]), truth)
    yield signature(raw, truth.astype(np.float32), side, rng)


def raw_frame(rng, levels, width: int) -> np.ndarray:
    """Counts (n_amp, rows, width + overscan) int32: a sky with a few saturated pixels, and the pedestal."""
    shape = (*levels.shape, width + OVERSCAN)
    light = np.where(rng.uniform(size=shape) < 1e-4, 2 * SATURATION, 1500.0)
    light[:, :, width:] = 0
    noise = np.sqrt(light / GAIN + READ_NOISE_ADU**2) * rng.standard_normal(shape, np.float32)
    counts = levels[:, :, None] + light + noise
    return np.rint(np.minimum(counts, 65535)).astype(np.int32)


def level_cases(strips, truth) -> Iterator[Case]:
    """Levels of all rows, each kind beside the nearest that others have."""
    frames = [CCDData(strip, unit=u.adu) for strip in strips]
    clipped = {"astropy sigma_clipped_stats": lambda: sigma_clipped_stats(strips, axis=2, sigma=3, maxiters=1)[0]}
    for ours, direct, peers in (
        (overscan.row_median_levels, medians, {"ccdproc median": lambda: subtracted_levels(frames, median=True)}),
        (overscan.row_mean_levels, clipped_means, clipped),
        (overscan.adaptive_row_levels, None, {"ccdproc model": lambda: subtracted_levels(frames, model=Polynomial1D(3))}),
    ):
        yield level_case(strips, truth, ours, direct, peers)


def level_case(strips, truth, ours: Callable, direct: Callable | None, peers: dict[str, Callable]) -> Case:
    """One kind of levels; ccdproc takes its own from the strip too, as it knows no other way."""

    def check(results) -> None:
        """A median of n pixels is right to sqrt(pi / 2) sigma / sqrt(n), a mean better; whole counts add 1 / 2."""
        atol = LEVEL_SIGMA * np.sqrt(np.pi / 2) * READ_NOISE_ADU / np.sqrt(OVERSCAN) + 0.5
        for name, levels in results.items():
            np.testing.assert_allclose(levels, truth, rtol=0, atol=atol, err_msg=name)

    return Case(
        name=ours.__name__,
        size=f"{'x'.join(map(str, strips.shape))} i32",
        arrays={"strips": strips},
        ours=ours,
        moved_bytes=strips.nbytes + 4 * truth.size,
        direct=direct,
        peers=contest.installed(peers),
        check=check,
        tolerance=2**-22,  # the float32 levels, after sums of another order in float64
    )


def medians(xp, strips):
    return xp.median(strips, axis=2)


def clipped_means(xp, strips):
    """Without pixels beyond 3 of the row's own standard deviations."""
    mean, sigma = strips.mean(axis=2, keepdims=True), strips.std(axis=2, keepdims=True)
    kept = xp.abs(strips - mean) <= 3 * sigma
    return xp.where(kept, strips, 0).sum(axis=2) / kept.sum(axis=2)


def subtracted_levels(frames, **how) -> np.ndarray:
    """What ccdproc takes from each strip: levels (n_amp, rows), read off its first column."""
    from ccdproc import subtract_overscan

    found = [subtract_overscan(frame, overscan=frame, overscan_axis=1, **how) for frame in frames]
    return np.stack([frame.data[:, 0] - left.data[:, 0] for frame, left in zip(frames, found, strict=True)])


def signature(raw, levels, side: int, rng) -> Case:
    """Levels given: pedestal, gain, assembly, bias, dark and flat; image, mask and variance.

    ccdproc makes no mask, does not assemble, and its variance counts the bias's structure as light.
    """
    table = amplifier_table(side)
    planes = {name: calibration(rng, side, *how) for name, how in (("bias", BIAS), ("dark", DARK), ("flat", FLAT))}
    arrays = {"raw": raw, "rows": levels, "columns": np.zeros((len(raw), raw.shape[2]), np.float32), "table": table}

    def ours(raw, rows, columns, table, **planes):
        pairs = {name: CalibrationPlane(*pair) for name, pair in planes.items()}
        return remove_signature(raw, rows, columns, AmplifierTable(*table), (side, side), dark_time_s=DARK_TIME_S, **pairs)

    return Case(
        name="remove_signature",
        size=f"{'x'.join(map(str, raw.shape))} i32",
        arrays=arrays | planes,
        ours=ours,
        moved_bytes=4 * side**2 * (1 + 6 + 3),  # counts of the data, three masters, three planes out
        direct=remove_plainly,
        peers=contest.installed({"ccdproc": ccdproc_chain(raw, levels, planes)}),
        check=agree(raw.max() * GAIN, planes),
    )


def agree(most_electrons: float, planes) -> Callable:
    """The check of signature removal."""
    least_flat, most_bias = planes["flat"][0].min(), np.abs(planes["bias"][0]).max()

    def check(results) -> None:
        """Array expressions round alike; ccdproc has float64, and the bias's electrons in its variance."""
        image, mask, variance = results[OURS]
        for got, wanted in zip(results[DIRECT], results[OURS], strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=DIRECT)
        assert (mask & MaskPlane.SAT).any()
        rounding = STEPS * 2**-24 * most_electrons / least_flat**2
        for peer in results.keys() - {OURS, DIRECT}:
            np.testing.assert_allclose(image, assembled(np, results[peer][0]), rtol=0, atol=rounding, err_msg=peer)
            atol = most_bias / least_flat**2 + rounding
            np.testing.assert_allclose(variance, assembled(np, results[peer][1]) ** 2, rtol=0, atol=atol, err_msg=peer)

    return check


def amplifier_table(side: int) -> tuple[np.ndarray, ...]:
    """Columns of `AmplifierTable`; the upper row of amplifiers is read out downwards."""
    height, width, n_amp = side // 2, side // PER_ROW, 2 * PER_ROW
    boxes = [(0, 0, width, height, k % PER_ROW * width, k // PER_ROW * height, 1, k // PER_ROW) for k in range(n_amp)]
    numbers = (GAIN, GAIN**2 * (READ_NOISE_ADU**2 + 1 / 12), SATURATION, SUSPECT)
    return np.array(boxes, np.int32), *(np.full(n_amp, v, np.float32) for v in numbers), np.zeros(n_amp, np.int32)


def calibration(rng, side: int, mean: float, scatter: float, variance: float) -> tuple[np.ndarray, np.ndarray]:
    image = mean + scatter * rng.standard_normal((side, side), np.float32)
    return image, np.full((side, side), variance, np.float32)


def remove_plainly(xp, raw, rows, columns, table, bias, dark, flat):
    """The same arithmetic, step by step on whole planes."""
    _, gain, noise_variance, saturation, suspect, _ = (column[:, None, None] for column in table)
    counts = raw[:, :, :-OVERSCAN].astype(xp.float32)
    signal = (counts - rows[:, :, None] - columns[:, None, :-OVERSCAN]) * gain
    bits = xp.where(counts >= saturation, np.int32(MaskPlane.SAT), np.int32(0))
    bits |= xp.where(counts >= suspect, np.int32(MaskPlane.SUSPECT), np.int32(0))
    signal, bits = assembled(xp, signal), assembled(xp, bits)
    time = np.float32(DARK_TIME_S)
    signal = signal - bias[0]
    noise = noise_variance[0, 0, 0] + bias[1] + xp.where(signal > 0, signal, np.float32(0))
    signal = signal - dark[0] * time
    noise = noise + dark[1] * (time * time)
    signal = signal / flat[0]
    noise = (noise + signal * signal * flat[1]) / (flat[0] * flat[0])
    known = xp.isfinite(signal) & xp.isfinite(noise)
    bits = xp.where(known, bits, bits | np.int32(MaskPlane.BAD | MaskPlane.NO_DATA))
    return xp.where(known, signal, np.float32(np.nan)), bits, xp.where(known, noise, np.float32(np.nan))


def assembled(xp, stack):
    """The amplifiers' pixels (n_amp, height, width) in their places on the detector."""
    height, width = stack.shape[1:]
    rows = stack[:PER_ROW, :, ::-1], stack[PER_ROW:, ::-1, ::-1]
    return xp.concatenate([row.transpose(1, 0, 2).reshape(height, PER_ROW * width) for row in rows])


def taken_apart(plane) -> np.ndarray:
    """The inverse of `assembled`."""
    height, width = plane.shape[0] // 2, plane.shape[1] // PER_ROW
    lower, upper = plane.reshape(2, height, PER_ROW, width).transpose(0, 2, 1, 3)
    return np.concatenate([lower[:, :, ::-1], upper[:, ::-1, ::-1]])


def ccdproc_chain(raw, levels, planes) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """ccdproc's steps, an amplifier at a time, on masters cut to amplifiers; images and standard deviations.

    The levels are handed over as an overscan of one column.
    """
    units = {"bias": u.electron, "dark": u.electron / u.s, "flat": u.dimensionless_unscaled}
    cut = {name: [taken_apart(plane) for plane in pair] for name, pair in planes.items()}
    frames = [CCDData(counts, unit=u.adu) for counts in raw]
    columns = [CCDData(level[:, None], unit=u.adu) for level in levels]
    masters = [
        {n: CCDData(v[0][k], unit=units[n], uncertainty=StdDevUncertainty(np.sqrt(v[1][k]))) for n, v in cut.items()}
        for k in range(len(raw))
    ]

    def chain():
        done = [reduced(*parts) for parts in zip(frames, columns, masters, strict=True)]
        return np.stack([frame.data for frame in done]), np.stack([frame.uncertainty.array for frame in done])

    return chain


def reduced(frame: CCDData, column: CCDData, masters: dict[str, CCDData]) -> CCDData:
    import ccdproc

    noise = GAIN * np.sqrt(READ_NOISE_ADU**2 + 1 / 12) * u.electron
    frame = ccdproc.trim_image(ccdproc.subtract_overscan(frame, overscan=column)[:, :-OVERSCAN])
    frame = ccdproc.gain_correct(frame, GAIN * u.electron / u.adu)
    frame = ccdproc.create_deviation(frame, readnoise=noise, disregard_nan=True)
    frame = ccdproc.subtract_bias(frame, masters["bias"])
    frame = ccdproc.subtract_dark(frame, masters["dark"].multiply(DARK_TIME_S * u.s), **same_exposure())
    return ccdproc.flat_correct(frame, masters["flat"], norm_value=1.0)


def same_exposure() -> dict:
    """The dark is scaled before: ccdproc would do so only for a dark in the science image's own unit."""
    return {"dark_exposure": DARK_TIME_S * u.s, "data_exposure": DARK_TIME_S * u.s}


if __name__ == "__main__":
    contest.main("kernel-isr", cases, __doc__)
