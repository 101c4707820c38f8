"""Values for pixels that have none: linear interpolation across gaps, along the row and the column."""

from __future__ import annotations

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

GOOD, GAP, OUTSIDE = 0, 1, 2  # what a pixel is: usable, to be filled, or without data like the world beyond


def interpolate_masked(image, mask, variance, *, planes: MaskPlane, reach_pix: int = 24):
    """Return copies of the planes in which pixels with ``planes`` carry values estimated from their neighbours.

    ``image``, ``variance`` float32 and ``mask`` int32 are (ny, nx). A gap is bridged by the straight line between
    the nearest usable pixels, at most ``reach_pix`` away on either side, along the row and along the column; the
    two estimates are averaged with weights 1 / length^2, so the short way across a bad column or trail rules. At
    the image's border, or beside NO_DATA, the one end there is counts as a gap of twice its distance.

    The filled variance is the weighted mean of the variances used plus the weighted scatter of the two estimates:
    never less than a real pixel there would have, though the noise is copied, so exclude INTRP from statistics.
    Filled pixels gain INTRP and keep their other planes. Pixels in gaps too large to bridge keep value and planes.
    Non-finite pixels are treated like masked ones; those that cannot be filled become NO_DATA, NaN. NO_DATA pixels
    are untouched.
    """
    xp = array_module(image)
    if image.shape != mask.shape or image.shape != variance.shape:
        raise InputError(f"planes differ in shape: {image.shape}, {mask.shape}, {variance.shape}")
    image, variance = (xp.ascontiguousarray(plane, xp.float32) for plane in (image, variance))
    outside = (mask & int(MaskPlane.NO_DATA)) != 0
    broken = ~(xp.isfinite(image) & xp.isfinite(variance)) & ~outside
    gap = (((mask & int(planes)) != 0) & ~outside) | broken
    state = gap * xp.uint8(GAP) + outside * xp.uint8(OUTSIDE)  # never both
    filled_image, filled_variance = image.copy(), variance.copy()
    filled = xp.zeros(image.shape, dtype=xp.uint8)
    bridge_gaps(
        Launch.over(image.shape),
        *(xp.ascontiguousarray(plane) for plane in (image, variance, state)),
        filled_image,
        filled_variance,
        filled,
        *(np.int32(value) for value in (*image.shape, reach_pix)),
    )
    lost = broken & (filled == 0)
    filled_image[lost], filled_variance[lost] = np.nan, np.nan
    mask = mask | (filled != 0) * np.int32(MaskPlane.INTRP)
    return filled_image, mask | lost * np.int32(MaskPlane.NO_DATA), filled_variance


def bridge_gap_reference(image, variance, state, row, column, reach):
    """Return (value, variance) of one gap pixel by the definition in `interpolate_masked`; None if too far."""
    found = []
    for line, spread, kinds, at in (
        (image[row], variance[row], state[row], column),
        (image[:, column], variance[:, column], state[:, column], row),
    ):
        good = np.flatnonzero(kinds == GOOD)
        open_low, open_high = (kinds[:at] != OUTSIDE), (kinds[at + 1 :] != OUTSIDE)
        low = [k for k in good if k < at and open_low[k:].all() and at - k <= reach][-1:]
        high = [k for k in good if k > at and open_high[: k - at].all() and k - at <= reach][:1]
        edge_low = not open_low[max(at - reach, 0) :].all() or at - reach < 0
        edge_high = not open_high[:reach].all() or at + reach >= kinds.size
        if low and high:
            part = (at - low[0]) / (high[0] - low[0])
            mix = [(1 - part) * a[low[0]] + part * a[high[0]] for a in (line, spread)]
            found.append((1 / (high[0] - low[0]) ** 2, *mix))
        elif (low and edge_high) or (high and edge_low):
            end = (low or high)[0]
            found.append((1 / (2 * (end - at)) ** 2, line[end], spread[end]))
    if not found:
        return None
    weight, value, spread = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    mean = (weight * value).sum() / weight.sum()
    return mean, (weight * (spread + (value - mean) ** 2)).sum() / weight.sum()


@hot_loop("interpolation")
def bridge_gaps(image, variance, state, out_image, out_variance, filled, ny, nx, reach):
    """Fill every pixel whose state is GAP, one a thread; reads good pixels only, writes gaps only."""
    no, one = np.int64(0), np.int64(1)
    for y in numba.prange(ny):
        for x in range(nx):
            row, column = np.int64(y), np.int64(x)  # one integer type, else every helper is compiled for each
            if state[row, column] != GAP:
                continue
            weight_x, value_x, spread_x = _bridge(image, variance, state, row, column, no, one, ny, nx, reach)
            weight_y, value_y, spread_y = _bridge(image, variance, state, row, column, one, no, ny, nx, reach)
            weight = weight_x + weight_y
            if weight == 0.0:
                continue
            value = (weight_x * value_x + weight_y * value_y) / weight
            off_x, off_y = value_x - value, value_y - value
            spread = weight_x * (spread_x + off_x * off_x) + weight_y * (spread_y + off_y * off_y)
            out_image[row, column] = value
            out_variance[row, column] = spread / weight
            filled[row, column] = 1


@device_function
def _reach_out(state, row, column, step_y, step_x, ny, nx, reach):
    """Walk from a gap; return the distance to a good pixel, 0 if the walk ends outside, -1 if it is too far."""
    for distance in range(1, reach + 1):
        y, x = row + distance * step_y, column + distance * step_x
        if y < 0 or y >= ny or x < 0 or x >= nx or state[y, x] == OUTSIDE:
            return 0
        if state[y, x] == GOOD:
            return distance
    return -1


@device_function
def _bridge(image, variance, state, row, column, step_y, step_x, ny, nx, reach):
    """Return weight, value and variance of the line across the gap in one direction; weight 0 if there is none."""
    before = _reach_out(state, row, column, -step_y, -step_x, ny, nx, reach)
    after = _reach_out(state, row, column, step_y, step_x, ny, nx, reach)
    if before < 0 or after < 0 or before + after == 0:
        return 0.0, 0.0, 0.0
    low_y, low_x = row - before * step_y, column - before * step_x
    high_y, high_x = row + after * step_y, column + after * step_x
    if before == 0:
        length = 2.0 * after
        return 1.0 / (length * length), np.float64(image[high_y, high_x]), np.float64(variance[high_y, high_x])
    if after == 0:
        length = 2.0 * before
        return 1.0 / (length * length), np.float64(image[low_y, low_x]), np.float64(variance[low_y, low_x])
    length = np.float64(before + after)
    part = before / length
    value = (1.0 - part) * np.float64(image[low_y, low_x]) + part * np.float64(image[high_y, high_x])
    spread = (1.0 - part) * np.float64(variance[low_y, low_x]) + part * np.float64(variance[high_y, high_x])
    return 1.0 / (length * length), value, spread
