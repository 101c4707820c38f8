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
