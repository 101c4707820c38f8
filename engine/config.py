"""The engine's configuration: one frozen section per stage. Every field names its unit and its effect."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, and strict about names: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IsrConfig(Section):
    """Raw pixels to electrons."""

    # How the pedestal is taken from the serial overscan: "row_median" and "row_mean" follow each row and add their own
    # noise to it, "amplifier" takes one level a frame, "adaptive" follows rows as far as they drift above the noise.
    serial_overscan: Literal["adaptive", "row_median", "row_mean", "amplifier"] = "adaptive"
    # Whether a parallel overscan, where the camera has one, is taken off each column.
    parallel_overscan: bool = True
    # Pixels of the camera file's overscan boxes to leave out next to the data, where charge trails, and at the end.
    overscan_skip_leading: int = Field(default=0, ge=0)
    overscan_skip_trailing: int = Field(default=0, ge=0)
    # adu; a column whose parallel overscan is further above the amplifier's median holds bleeding charge.
    parallel_max_deviation_adu: float = Field(default=100.0, gt=0)
    # Read noise in the variance plane: measured in this frame's overscan, or the camera file's constant.
    read_noise: Literal["measured", "camera"] = "measured"
    # electron; an amplifier with more read noise than this is dead, and masked BAD.
    max_read_noise_electron: float = Field(default=50.0, gt=0)
    # Fraction of pixels that may be saturated, bad or without data before the frame is refused.
    max_unusable_fraction: float = Field(default=0.9, gt=0, le=1)


class CalibrateConfig(Section):
    """Bias, dark, flat and defects from raw frames."""

    # Predicted sigmas from the median at which a value (cosmic ray, star in a sky flat) is left out of the mean.
    clip_sigma: float = Field(default=4.0, gt=0)
    # Fraction of the flat's level that exposures may differ by before clipping: changes of the sky's gradient.
    flat_tolerance: float = Field(default=0.0, ge=0)
    # Width, pixel, of the smoothing that finds stars in sky flats too faint for one pixel to show; 0 does not look.
    flat_star_smoothing_pix: int = Field(default=7, ge=0)
    # electron; a bias pixel this far from its neighbours in the row is a defect, ...
    bias_defect_electron: float = Field(default=30.0, gt=0)
    # electron / s; so is a pixel with this much more dark current than its neighbours, ...
    dark_defect_electron_s: float = Field(default=5.0, gt=0)
    # and one with a response this fraction lower or higher than its neighbours; all if they are also significant:
    flat_defect_fraction: float = Field(default=0.2, gt=0)
    # sigmas of the calibration's own noise that a defect must stand out by.
    defect_sigma: float = Field(default=5.0, gt=0)
    # Width, pixel, along the row of the median that says what the neighbours are; defects up to half as wide are found.
    defect_window_pix: int = Field(default=31, ge=3)
    # A column of an amplifier with this many defects is a bad column: gaps between them up to the next number are filled.
    bad_column_pixels: int = Field(default=50, ge=1)
    bad_column_gap_pix: int = Field(default=30, ge=0)


class CharacterizeConfig(Section):
    """Cosmic rays, background, PSF, registration, zero point."""

    initial_fwhm_pix: float = Field(4.0, gt=1.0)  # pixels; the guess that finds the first stars
    background_bin_pix: int = Field(128, ge=16, le=1024)  # pixels; side of a background bin
    background_clip_sigma: float = Field(3.0, gt=1)  # sigma; pixels further from a bin's mean do not enter its level
    background_clip_iterations: int = Field(20, ge=1)  # rounds of that clipping, fewer when nothing changes
    # Level of a bin once sources are masked. The mean has half the noise of the mode and holds the light of undetected
    # sources, which lies under measured sources too; the mode leaves more of that out, and is lower by Poisson skewness.
    background_estimator: Literal["mean", "mode"] = "mean"
    # Of a bin's error; bins further from the median of their 3 x 3 neighbours take it. 0: all do, which ties them together.
    background_outlier_sigma: float = Field(3.0, ge=0)
    # Surface through the bins: "spline" and "linear" follow each of them, "polynomial" is one smooth surface with less noise.
    background_interpolation: Literal["spline", "linear", "polynomial"] = "spline"
    background_polynomial_order: int = Field(2, ge=0, le=6)  # total degree of that; lowered when bins are few
    cosmic_ray_threshold: float = Field(5.0, gt=0)  # sigma of the Laplacian
    star_threshold: float = Field(5.0, gt=0)  # sigma; detection of stars on the visit image
    psf_size_pix: int = Field(25, ge=7)  # pixels, odd; width of the PSF image
    psf_order: int = Field(2, ge=0, le=4)  # of the polynomial by which the PSF varies; lowered when stars are few
    psf_min_snr: float = Field(50.0, gt=0)  # of a PSF star
    psf_max_stars: int = Field(200, ge=1)
    calibration_min_snr: float = Field(10.0, gt=0)  # of a star used for WCS and zero point
    registration_radius_pix: float = Field(120.0, gt=0)  # pixels; by how much the raw WCS may be off
    max_rotation_deg: float = Field(0.5, ge=0, le=180)  # degrees; by how much it may be turned; 180: by any angle
    match_tolerance_pix: float = Field(2.0, gt=0)  # pixels; distance of a star to its reference after the shift
    # Highest order of the polynomial that corrects the WCS; lowered when stars are few or do not ask for it. 1: affine.
    distortion_order: int = Field(3, ge=1, le=5)
    min_matches: int = Field(6, ge=3)  # stars below which registration fails


class PrepareConfig(Section):
    """A reduced image with its sky: sky, variance, sources, PSF."""

    initial_fwhm_pix: float = Field(4.0, gt=1.0)  # pixels; the guess that finds the sources whose size is measured
    sizing_snr: float = Field(20.0, gt=0)  # of sources whose size is measured
    background_bin_pix: int = Field(128, ge=16)  # pixels; side of a bin of the mesh that the sky is fitted to
    sky_order: int = Field(2, ge=0, le=4)  # of the polynomial through the mesh; lower when there are few bins
    # Bring a given variance to the scatter of the sky by one factor, where neighbours there are independent: weight maps of
    # other pipelines are often a few per cent off. Where resampling has tied pixels together their scatter says too little.
    scale_variance: bool = True
    threshold: float = Field(5.0, gt=0)  # sigma; detection of sources, the stars of the matching kernel among them
    psf_order: int = Field(2, ge=0, le=4)  # of the polynomial by which the PSF varies; lowered when stars are few
    psf_min_snr: float = Field(50.0, gt=0)  # of a PSF star; down to sizing_snr where fewer than ten sources have that
    psf_max_stars: int = Field(200, ge=1)


class AlignConfig(Section):
    """Two reduced images on one grid."""

    # auto: as they are where shape and WCS say that they are aligned, else warped by WCS and stars, or stars alone where a
    # WCS is missing. none: as they are.
    mode: Literal["auto", "none", "wcs", "stars"] = "auto"
    same_grid_pix: float = Field(0.05, ge=0)  # pixels by which the two WCSs may differ on images that count as aligned
    min_snr: float = Field(20.0, gt=0)  # of the stars that are matched
    max_offset_pix: float | None = Field(None, gt=0)  # pixels; None: 30 with a WCS, the size of the image without
    max_rotation_deg: float | None = Field(None, ge=0, le=180)  # degrees; None: 0.5 with a WCS, any without
    tolerance_pix: float = Field(2.0, gt=0)  # pixels; distance of a star to its partner after the shift
    distortion_order: int = Field(3, ge=1, le=3)  # highest order of the correction; what the stars do not need is not fitted


class TemplateConfig(Section):
    """Coaddition of visit images."""

    warp_order: int = Field(3, ge=3, le=5)  # lobes of the Lanczos window
    warp_step_pix: int = Field(16, ge=1)  # pixels between positions computed through the WCSs
    padding_pix: int = Field(32, ge=0)  # added on every side of the first exposure's grid; covers dithers and roll
    clip_sigma: float = Field(5.0, gt=0)  # noise units from the median beyond which a value is left out (3 or more visits)
    # Of the median, added to that: a variable star must be averaged whole, not clipped in its core alone.
    clip_tolerance: float = Field(1.0, ge=0)
    high_variance_factor: float = Field(4.0, gt=1)  # times the median variance: HIGH_VARIANCE from there on
    high_variance_bin_pix: int = Field(32, ge=1)  # pixels; side of the bins of that test
    psf_size_pix: int = Field(25, ge=7)  # pixels, odd; width of the template's PSF image
    psf_order: int = Field(2, ge=0, le=4)  # of the polynomial by which it varies; lowered when stars are few
    star_threshold: float = Field(10.0, gt=0)  # sigma; detection of the stars of the template's table
    max_stars: int = Field(5000, ge=1)  # rows of the star table, brightest first


class DifferenceConfig(Section):
    """Template warp, PSF matching, subtraction, decorrelation."""

    warp_order: int = Field(3, ge=3, le=5)  # lobes of the Lanczos window
    warp_step_pix: int = Field(16, ge=1)  # pixels between positions computed through the WCSs
    min_coverage: float = Field(0.1, ge=0, le=1)  # fraction of the science pixels the template must cover
    high_variance_factor: float = Field(4.0, gt=1)  # times the warped template's median variance: HIGH_VARIANCE from there on
    high_variance_bin_pix: int = Field(32, ge=1)  # pixels; side of the bins of that test
    # How: a kernel fitted to stars (Alard & Lupton), or proper subtraction from the two PSFs (Zackay, Ofek & Gal-Yam).
    method: Literal["alard_lupton", "zogy"] = "alard_lupton"
    convolve: Literal["auto", "template", "science"] = "auto"  # auto: the template unless the science is clearly sharper
    sharper_factor: float = Field(0.95, gt=0)  # science / template FWHM below which auto convolves the science
    # What the kernel is made of: Gaussians times polynomials, or single pixels held smooth (slower, for odd PSFs).
    kernel_basis: Literal["gaussian", "delta"] = "gaussian"
    kernel_size_pix: int | None = Field(None, ge=5)  # pixels, odd; None: from the two PSF sizes
    kernel_degrees: tuple[int, ...] = (4, 2, 2, 2)  # polynomial degree that multiplies each Gaussian of the basis
    spatial_order: int | None = Field(None, ge=0, le=3)  # of the kernel over the detector; None: cross-validated
    background_order: int = Field(1, ge=0, le=3)  # of the difference background fitted with the kernel
    constant_scale: bool = True  # one photometric scale for the whole detector
    kernel_min_snr: float = Field(5.0, gt=0)  # of a star in the kernel fit, in the science image
    kernel_max_stars: int = Field(600, ge=1)  # most stars in the kernel fit
    kernel_cell_pix: int = Field(128, ge=16)  # pixels; cells from which stars are taken evenly, brightest first
    # pixels; the matching kernel is linear within a tile, the decorrelation constant; None: from the image's size
    tile_pix: int | None = Field(None, ge=16)
    subtract_background: bool = True  # fit and subtract a smooth background of the difference
    difference_background_bin_pix: int = Field(64, ge=16)  # pixels; bins of that fit
    # pixels; knots of the spline through the bins, which is as stiff as the bins ask for; None: a tenth of the image
    difference_background_knot_pix: int | None = Field(None, ge=32)
    decorrelate: bool = True  # whiten the noise


class SubtractConfig(Section):
    """One reduced image minus another: what ``nightstream subtract`` does."""

    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    align: AlignConfig = Field(default_factory=AlignConfig)
    # Not whitened unless asked: the difference then has the PSF of the science image.
    difference: DifferenceConfig = Field(default_factory=lambda: DifferenceConfig(decorrelate=False))
    score: bool = False  # also make a score image: the significance of a point source at every pixel


class MeasureConfig(Section):
    """Detection on the difference and measurement of what was found."""

    threshold: float = Field(5.0, gt=0)  # sigma of the PSF-correlated difference; both signs are detected
    max_sources: int = Field(10_000, ge=1, le=16_384)  # more detections than this mean that the subtraction failed
    max_shift_pix: float = Field(3.0, gt=0)  # pixels a fitted position may be from its peak; else peak and flag
    aperture_radius_pix: float = Field(12.0, gt=0)  # pixels; of ap_flux
    flag_radius_fwhm: float = Field(1.5, gt=0)  # PSF FWHMs; half side of the box that pixel flags look at
    dipole_max_separation_fwhm: float = Field(2.5, gt=0)  # PSF FWHMs between the peaks of two lobes
    dipole_min_chi2_gain: float = Field(25.0, ge=0)  # chi2 by which two lobes must beat a single source
    dipole_max_lobe_share: float = Field(0.7, gt=0.5, le=1)  # of the summed flux in the stronger lobe of a dipole
    star_residual_fraction: float = Field(
        0.05, ge=0
    )  # of a star's template flux: a difference below it, on the star, is a residual
    star_residual_radius_fwhm: float = Field(1.0, ge=0)  # PSF FWHMs from the star that count as on it
    star_wing_fraction: float = Field(
        0.005, ge=0
    )  # the same in the star's wings, where a PSF that is matched to 1 % leaves as much
    star_wing_radius_fwhm: float = Field(3.5, ge=0)  # PSF FWHMs to which the wings reach


class ForceConfig(Section):
    """Forced photometry at known positions."""

    at_sources: bool = True  # also at every DIASource, any of which may be a new object
    chunk_positions: int = Field(50_000, ge=1)  # positions measured at once; bounds the memory, some 1 kB each


class CutoutConfig(Section):
    """The stamps that travel with an alert."""

    min_size_pix: int = Field(30, ge=5)  # pixels; side of the smallest stamp
    max_size_pix: int = Field(102, ge=5)  # pixels; side of the largest


class AssociateConfig(Section):
    """Which DIASource belongs to which object."""

    radius_arcsec: float = Field(1.0, ge=0.05, le=60)  # arcsec; farther pairs are never matched
    # arcsec, in quadrature with the errors of every pair: how well two visits' frames agree at best.
    position_floor_arcsec: float = Field(0.05, gt=0)
    missing_error_arcsec: float = Field(0.2, gt=0)  # arcsec; stands for a position's error where the table has none
    # -ln of the density (arcsec^-2) of sources that belong to nothing known; a pair must be likelier than that.
    # 14 is one in 10^6 arcsec^2, and lets pairs at the floor be 6 sigma apart.
    no_match_cost: float = 14.0
    proper_motion_snr: float = Field(5.0, ge=0)  # sigma; a proper motion that is less significant is taken as none
    # days that rates move a prediction which names no visit; a main-belt asteroid strays by 0.2 arcsec in 0.1 day
    ephemeris_max_days: float = Field(0.1, ge=0)
    min_reliability: float = Field(0.1, ge=0, le=1)  # an unmatched source below makes no object; no reliability passes
    # S/N on the visit image below which an unmatched source makes no object: no light of the sky is less than none.
    min_science_snr: float = -2.0
    max_new_objects_per_detector: int = Field(1000, ge=0)  # more than this mean that the subtraction failed


class DiaObjectConfig(Section):
    """The columns of a DIAObject, from its history."""

    history_days: float = Field(365.0, gt=0)  # days; older measurements are forgotten
    position_floor_arcsec: float = Field(0.01, ge=0)  # arcsec; added in quadrature to each position's error, per axis
    missing_error_arcsec: float = Field(0.2, gt=0)  # arcsec; stands for a position's error where the table has none
    # Nights and days of detections from which proper motion and parallax are fitted; below, a mean position alone.
    motion_min_epochs: int = Field(6, ge=4)
    motion_min_days: float = Field(180.0, gt=0)
    # Which difference fluxes periods are sought in: those of detections, or of forced photometry.
    period_flux: Literal["dia_sources", "forced_sources"] = "dia_sources"
    period_min_points: int = Field(5, ge=5)  # fluxes in a band below which it takes no part
    # Sigmas by which chi2 about the means must exceed its degrees of freedom: noise is not searched.
    period_min_significance: float = Field(5.0, ge=0)
    period_oversample: float = Field(5.0, ge=1)  # frequencies per 1 / baseline
    period_min_days: float = Field(0.25, gt=0)  # days; the shortest period sought (its inverse sets the time it takes)


class EngineConfig(Section):
    """All stages of one detector."""

    isr: IsrConfig = Field(default_factory=IsrConfig)
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig)
    characterize: CharacterizeConfig = Field(default_factory=CharacterizeConfig)
    template: TemplateConfig = Field(default_factory=TemplateConfig)
    difference: DifferenceConfig = Field(default_factory=DifferenceConfig)
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    force: ForceConfig = Field(default_factory=ForceConfig)
    cutout: CutoutConfig = Field(default_factory=CutoutConfig)
    associate: AssociateConfig = Field(default_factory=AssociateConfig)
    dia_object: DiaObjectConfig = Field(default_factory=DiaObjectConfig)
