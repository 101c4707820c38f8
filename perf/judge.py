"""How good a difference image of a `sample.Sample` is, measured with the truth alone, and what no method can beat.

The same for every tool: noise against the expected variance, sources found by a matched filter against the transients
that are there, forced PSF photometry at their true places with the true PSF.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sample import FIELD, ON_GALAXY, ON_STAR, SCALE, SCIENCE, STAMP_HALF, TEMPLATE, Sample, psf_stamp, registration, stamp_box
from scipy import ndimage, signal
from scipy.spatial import cKDTree

EDGE_PIX, SATURATION_PIX, TRANSIENT_PIX = 36, 20, 14  # left out along the border, around saturation, around transients
THRESHOLD = 5.0
FILTER_HALF = 15
MATCH_PIX, SHOULDER_PIX, GROUP_PIX = 3, 8, 5  # a peak is a transient; its shoulder; one peak with another
PLACES = {"sky": FIELD, "galaxies": ON_GALAXY, "stars": ON_STAR}
KERNEL_TILE, KERNEL_HALF, PSF_HALF = 128, 15, 31  # pixels, of the true matching kernel


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``numbers`` by name; ``pulls`` (n,) are (flux - truth) / error of the transients that were measured."""

    numbers: dict[str, float]
    pulls: np.ndarray
    places: np.ndarray  # (n,) of `PLACES`


def judge(sample: Sample, difference, bad=None) -> Verdict:
    """Judge ``difference`` (size, size): science ADU, science PSF, transients positive. NaN, |value| < 1e-20 and ``bad``
    pixels are left out, and their number is part of the verdict."""
    difference = np.array(difference, np.float64)
    variance = sample.variance.astype(np.float64)
    beyond = ndimage.binary_dilation(sample.saturated, iterations=SATURATION_PIX)
    beyond[:EDGE_PIX], beyond[-EDGE_PIX:], beyond[:, :EDGE_PIX], beyond[:, -EDGE_PIX:] = True, True, True, True
    lost = ~np.isfinite(difference) | (np.abs(difference) < 1e-20)
    lost = (lost if bad is None else lost | bad) & ~beyond
    unusable = beyond | lost
    difference[unusable] = 0
    weight = np.where(unusable, 0, 1 / variance)
    numbers = {"bad_fraction": float(lost.mean())}
    numbers |= _noise(sample, difference / np.sqrt(variance), unusable)
    numbers |= _detections(sample, difference, weight, unusable)
    pulls, measured = _pulls(sample, difference, weight)
    numbers |= {"photometry_bias": float(np.median(pulls)), "photometry_scatter": robust_scatter(pulls)}
    return Verdict(numbers=numbers, pulls=pulls, places=sample.transients[measured, 4])


def robust_scatter(values) -> float:
    """Standard deviation from the median absolute deviation; NaN of nothing."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def pooled(verdicts: list[Verdict]) -> dict[str, dict[str, float]]:
    """Median, robust scatter, standard deviation and number of all pulls together, by place."""
    pulls = np.concatenate([v.pulls for v in verdicts])
    places = np.concatenate([v.places for v in verdicts])
    chosen = {"all": pulls} | {name: pulls[places == place] for name, place in PLACES.items()}
    return {
        name: {"median": float(np.median(z)), "mad": robust_scatter(z), "std": float(np.std(z)), "n": len(z)}
        for name, z in chosen.items()
        if len(z)
    }


def oracle(sample: Sample) -> np.ndarray:
    """Science minus the noise-free static sky: what a template without noise would give."""
    return sample.science.astype(float) - sample.static_science


def template_noise_bound(sample: Sample) -> np.ndarray:
    """The `oracle` minus the template's noise convolved with the true matching kernel of each tile of 128 pixels: what the
    given template allows. Saturated pixels of the template have no noise."""
    noise = np.where(sample.saturated, 0.0, sample.template.astype(float) - sample.static_template)
    noise = np.pad(noise, KERNEL_HALF)
    out = oracle(sample)
    for y in range(0, sample.size, KERNEL_TILE):
        for x in range(0, sample.size, KERNEL_TILE):
            y1, x1 = min(y + KERNEL_TILE, sample.size), min(x + KERNEL_TILE, sample.size)
            kernel = true_kernel((x + x1) / 2, (y + y1) / 2, sample.size)
            out[y:y1, x:x1] -= signal.fftconvolve(noise[y : y1 + 2 * KERNEL_HALF, x : x1 + 2 * KERNEL_HALF], kernel, "valid")
    return out


def true_kernel(x, y, size) -> np.ndarray:
    """Return the kernel that turns the template's PSF at ``x, y`` into the science PSF, registration and scale too."""
    dx, dy = registration(x, y, size)
    pixel = round(x), round(y)
    science = psf_stamp(x, y, size, SCIENCE, PSF_HALF, pixel)[2]
    template = psf_stamp(x, y, size, TEMPLATE, PSF_HALF, (pixel[0] + dx, pixel[1] + dy))[2]
    wanted, given = (np.fft.rfft2(np.fft.ifftshift(np.pad(p, (0, 1)))) for p in (science, template))
    ratio = wanted * given.conj() / (np.abs(given) ** 2 + 1e-6 * np.abs(given[0, 0]) ** 2)
    kernel = np.fft.fftshift(np.fft.irfft2(ratio))
    middle = slice(PSF_HALF + 1 - KERNEL_HALF, PSF_HALF + 2 + KERNEL_HALF)
    return SCALE * kernel[middle, middle]


def _noise(sample: Sample, pull, unusable) -> dict[str, float]:
    """Scatter over the expected one: on empty sky, and on bright sources; correlation of neighbours."""
    near = np.zeros(unusable.shape, bool)
    near[_pixels(sample.transients[:, 1]), _pixels(sample.transients[:, 0])] = True
    quiet = ~unusable & ~ndimage.binary_dilation(near, iterations=TRANSIENT_PIX)
    sigma = 23.5  # of the science image's sky
    blank, bright = (sample.sources < 0.3 * sigma) & quiet, (sample.sources > 100 * sigma) & quiet
    sky = np.where(blank, pull, np.nan)
    return {
        "sky_noise": robust_scatter(pull[blank]),
        "neighbour_correlation": float(np.nanmean(sky[:, 1:] * sky[:, :-1]) / np.nanmean(sky**2)),
        "bright_rms": float(np.sqrt(np.mean(pull[bright] ** 2))) if bright.any() else float("nan"),
        "bright_mad": robust_scatter(pull[bright]),
    }


def _detections(sample: Sample, difference, weight, unusable) -> dict[str, float]:
    """Peaks of the matched filter of the PSF in mid-field against the transients."""
    significance = _matched_filter(sample.size, difference, weight, unusable)
    x, y, flux_snr = sample.transients[:, [0, 1, 3]].T
    usable = ~unusable[_pixels(y), _pixels(x)]
    peaks = _peaks(significance)
    distance, who = cKDTree(np.c_[x, y]).query(peaks) if len(peaks) else (np.zeros(0), np.zeros(0, int))
    found = np.zeros(len(x), bool)
    found[who[distance < MATCH_PIX]] = True
    matched, false = int((distance < MATCH_PIX).sum()), int((distance >= SHOULDER_PIX).sum())
    return {
        "false_positives": false,
        "negative_detections": len(_peaks(-significance)),
        "purity": matched / max(1, matched + false),
        "completeness_5": float(found[usable & (flux_snr > 5)].mean()),
        "completeness_7": float(found[usable & (flux_snr > 7)].mean()),
    }


def _matched_filter(size, difference, weight, unusable):
    psf = psf_stamp(size // 2, size // 2, size, SCIENCE, FILTER_HALF)[2]
    top = signal.fftconvolve(difference * weight, psf[::-1, ::-1], mode="same")
    bottom = signal.fftconvolve(weight, psf[::-1, ::-1] ** 2, mode="same")
    known = ~unusable & (bottom > 0.5 * np.sum(psf**2) * weight.clip(1e-30)) & (bottom > 0)
    return np.where(known, top / np.sqrt(np.maximum(bottom, 1e-30)), 0)


def _peaks(significance) -> np.ndarray:
    """(n, 2): x, y of the peaks above the threshold, the highest of those that lie close together."""
    y, x = np.nonzero((significance == ndimage.maximum_filter(significance, size=5)) & (significance > THRESHOLD))
    order = np.argsort(-significance[y, x])
    places = np.c_[x[order], y[order]]
    keep = np.ones(len(places), bool)
    for i, near in enumerate(cKDTree(places).query_ball_point(places, GROUP_PIX) if len(places) else ()):
        if keep[i]:
            keep[[j for j in near if j > i]] = False
    return places[keep]


def _pulls(sample: Sample, difference, weight):
    """(n,) pulls of the PSF fluxes at the true places, and (transients,) bool, which could be measured."""
    pulls = np.full(len(sample.transients), np.nan)
    for i, (x, y, flux) in enumerate(sample.transients[:, :3]):
        ix, iy, stamp = psf_stamp(x, y, sample.size, SCIENCE, STAMP_HALF)
        w = weight[stamp_box(ix, iy)]
        information = np.sum(w * stamp * stamp)
        if information > 0 and np.mean(w > 0) >= 0.99:
            measured, error = np.sum(w * stamp * difference[stamp_box(ix, iy)]) / information, information**-0.5
            pulls[i] = (measured - flux) / error
    measured = np.isfinite(pulls)
    return pulls[measured], measured


def _pixels(position):
    return np.round(position).astype(int)
