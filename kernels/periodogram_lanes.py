"""The grid of a periodogram on the CPU: many frequencies side by side in float32, so that they become SIMD.

What `nightstream.kernels.periodogram` does on the CPU where the card has a thread for each frequency. Angles are not computed
but turned: a row's (cos, sin) at the next frequency is that at this one, rotated.
"""

from __future__ import annotations

import math

import numpy as np

from nightstream.kernels.target import device_function

LANES = 64  # frequencies summed together on the CPU, in flat arrays of constant layout so that they become SIMD
# Determinant (0.25 for well-spread phases) of the normalised normal matrix below which a frequency cannot be told from a
# constant; large enough that float32 sums see it.
SINGULAR = np.float32(1e-4)
ONE = np.float32(1.0)


@device_function
def sum_lanes(one, other, ahead_one, ahead_other, sums):
    """Add two rows (w, w y, c0, s0) to the six sums of ``LANES`` frequencies: two, as the sums' traffic is what takes time.

    ``ahead`` are the rows' tables of (c, s), rotated by (c0, s0).
    """
    w, wy, c0, s0 = one
    v, vy, a0, b0 = other
    for j in range(LANES):
        c = ahead_one[j] * c0 - ahead_one[j + LANES] * s0
        s = ahead_one[j + LANES] * c0 + ahead_one[j] * s0
        a = ahead_other[j] * a0 - ahead_other[j + LANES] * b0
        b = ahead_other[j + LANES] * a0 + ahead_other[j] * b0
        sums[j] += w * c + v * a
        sums[j + LANES] += w * s + v * b
        sums[j + 2 * LANES] += wy * c + vy * a
        sums[j + 3 * LANES] += wy * s + vy * b
        sums[j + 4 * LANES] += w * c * c + v * a * a
        sums[j + 5 * LANES] += w * c * s + v * a * b


@device_function
def turned(row, begin, end, weight, residual, stride, here):
    """Return (w, w y, c, s) of a row in float32, all 0 beyond ``end``, and turn ``here`` on to the next block."""
    if row >= end:
        nothing = np.float32(0.0)
        return nothing, nothing, nothing, nothing
    k = row - begin
    c, s, w = here[k, 0], here[k, 1], weight[row]
    here[k, 0] = c * stride[k, 0] - s * stride[k, 1]
    here[k, 1] = s * stride[k, 0] + c * stride[k, 1]
    return np.float32(w), np.float32(w * residual[row]), np.float32(c), np.float32(s)


@device_function
def gain_lanes(sums, share, block, inside, gained, best):
    """Turn the sums of one band into power, keep the best per lane and its block, add up over bands."""
    for j in range(inside):
        c, s, cc = sums[j], sums[j + LANES], sums[j + 4 * LANES]
        yc, ys = sums[j + 2 * LANES], sums[j + 3 * LANES]
        a, b, d = cc - c * c, ONE - cc - s * s, sums[j + 5 * LANES] - c * s
        determinant = a * b - d * d
        raw = (b * yc * yc + a * ys * ys - (d + d) * yc * ys) / determinant
        power = raw if determinant > SINGULAR else np.float32(0.0)
        gained[j] += power * share
        higher = power > best[j]
        best[j] = power if higher else best[j]
        best[j + LANES] = block if higher else best[j + LANES]


@device_function
def keep_lanes(gained, block, inside, best):
    """Keep the best of all bands together per lane, and its block."""
    for j in range(inside):
        higher = gained[j] > best[j]
        best[j] = gained[j] if higher else best[j]
        best[j + LANES] = block if higher else best[j + LANES]


@device_function
def best_of_lanes(best):
    """Return the index of the frequency of highest power; of equals the lowest."""
    index = np.int64(best[LANES]) * LANES
    highest = best[0]
    for j in range(1, LANES):
        other = np.int64(best[j + LANES]) * LANES + j
        if best[j] > highest or (best[j] == highest and other < index):
            highest, index = best[j], other
    return index


@device_function
def fill_table(time, begin, end, step, ahead, stride):
    """Write cos and sin of 2 pi ``j step time`` of every row: lanes in float32, and one block of lanes as ``stride``."""
    for row in range(begin, end):
        angle = 2.0 * math.pi * step * time[row]
        c1, s1 = math.cos(angle), math.sin(angle)
        c, s = 1.0, 0.0
        for j in range(LANES):
            ahead[row - begin, j], ahead[row - begin, j + LANES] = c, s
            c, s = c * c1 - s * s1, s * c1 + c * s1
        stride[row - begin, 0], stride[row - begin, 1] = c, s


@device_function
def scan_object(time, residual, weight, start, chi2, base, n_bands, first, step, n_steps, rough):
    """Write the grid's frequency of highest power of each band and of all together to ``rough``."""
    begin, end = start[base], start[base + n_bands]
    ahead, stride = np.empty((end - begin, 2 * LANES), np.float32), np.empty((end - begin, 2))
    fill_table(time, begin, end, step, ahead, stride)
    here, total = np.empty((end - begin, 2)), 0.0
    for row in range(begin, end):
        angle = 2.0 * math.pi * first * time[row]
        here[row - begin, 0], here[row - begin, 1] = math.cos(angle), math.sin(angle)
    for band in range(base, base + n_bands):
        total += chi2[band]
    sums, gained = np.empty(6 * LANES, np.float32), np.empty(LANES, np.float32)
    best = np.zeros((n_bands + 1, 2 * LANES), np.float32)
    best[:, :LANES] = -1.0
    for block in range((n_steps + LANES - 1) // LANES):
        inside = min(LANES, n_steps - block * LANES)
        gained[:] = 0.0
        for band in range(n_bands):
            if not chi2[base + band] > 0.0:
                continue
            sums[:] = 0.0
            last = start[base + band + 1]
            for row in range(start[base + band], last, 2):
                one = turned(row, begin, last, weight, residual, stride, here)
                other = turned(row + 1, begin, last, weight, residual, stride, here)
                sum_lanes(one, other, ahead[row - begin], ahead[min(row + 1, last - 1) - begin], sums)
            share = np.float32(chi2[base + band] / total)
            gain_lanes(sums, share, np.float32(block), inside, gained, best[band])
        keep_lanes(gained, np.float32(block), inside, best[n_bands])
    for slot in range(n_bands + 1):
        if slot == n_bands or chi2[base + slot] > 0.0:
            rough[slot] = first + best_of_lanes(best[slot]) * step
