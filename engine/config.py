"""The engine's configuration: one frozen section per stage. Every field names its unit and its effect."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, and strict about names: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IsrConfig(Section):
    """Raw pixels to electrons."""


class CalibrateConfig(Section):
    """Bias, dark, flat and defects from raw frames."""


class CharacterizeConfig(Section):
    """Cosmic rays, background, PSF, registration, zero point."""

    initial_fwhm_pix: float = Field(4.0, gt=1.0)  # pixels; the guess that finds the first stars
    background_bin_pix: int = Field(128, ge=16)  # pixels; side of a background bin
    cosmic_ray_threshold: float = Field(6.0, gt=0)  # sigma of the Laplacian
    star_threshold: float = Field(5.0, gt=0)  # sigma; detection of stars on the visit image
    psf_size_pix: int = Field(25, ge=7)  # pixels, odd; width of the PSF image
    psf_order: int = Field(2, ge=0, le=4)  # of the polynomial by which the PSF varies; lowered when stars are few
    psf_min_snr: float = Field(50.0, gt=0)  # of a PSF star
    psf_max_stars: int = Field(200, ge=1)
    calibration_min_snr: float = Field(10.0, gt=0)  # of a star used for WCS and zero point
    registration_radius_pix: float = Field(120.0, gt=0)  # pixels; by how much the raw WCS may be off
    match_tolerance_pix: float = Field(2.0, gt=0)  # pixels; distance of a star to its reference after the shift
    min_matches: int = Field(6, ge=3)  # stars below which registration fails


class TemplateConfig(Section):
    """Coaddition of visit images."""


class DifferenceConfig(Section):
    """Template warp, PSF matching, subtraction, decorrelation."""


class MeasureConfig(Section):
    """Detection on the difference and measurement of what was found."""


class EngineConfig(Section):
    """All stages of one detector."""

    isr: IsrConfig = Field(default_factory=IsrConfig)
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig)
    characterize: CharacterizeConfig = Field(default_factory=CharacterizeConfig)
    template: TemplateConfig = Field(default_factory=TemplateConfig)
    difference: DifferenceConfig = Field(default_factory=DifferenceConfig)
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
