"""The mask planes, with LSST's names. A mask is an int32 array; a set bit says what is wrong or special with a pixel."""

from __future__ import annotations

from enum import IntFlag


class MaskPlane(IntFlag):
    """Bits of a mask. Test with ``mask & MaskPlane.SAT``; bit numbers are fixed and written with every product."""

    BAD = 1 << 0  # defect, or no trustworthy calibration
    SAT = 1 << 1  # at or above the saturation level when read
    INTRP = 1 << 2  # value was interpolated from neighbours
    CR = 1 << 3  # cosmic ray
    EDGE = 1 << 4  # too close to the border for the last convolution
    DETECTED = 1 << 5  # inside a footprint above the positive threshold
    DETECTED_NEGATIVE = 1 << 6  # inside a footprint below the negative threshold
    SUSPECT = 1 << 7  # near saturation, where linearity is in doubt
    NO_DATA = 1 << 8  # nothing was measured here; image and variance are NaN
    VIGNETTED = 1 << 9
    STREAK = 1 << 10
    HIGH_VARIANCE = 1 << 11
    SAT_TEMPLATE = 1 << 12  # saturated in the template
    INJECTED = 1 << 13  # holds a synthetic source

    @classmethod
    def unusable(cls) -> MaskPlane:
        """Pixels whose value must not enter a fit: BAD, SAT, CR, NO_DATA, EDGE, INTRP."""
        return cls.BAD | cls.SAT | cls.CR | cls.NO_DATA | cls.EDGE | cls.INTRP

    @classmethod
    def not_sky(cls) -> MaskPlane:
        """Pixels that say nothing of empty sky: unusable, saturated in the template, or inside a footprint."""
        return cls.unusable() | cls.SAT_TEMPLATE | cls.DETECTED | cls.DETECTED_NEGATIVE

    @classmethod
    def spreading(cls) -> MaskPlane:
        """Planes that a convolution carries on to neighbours: BAD, SAT, NO_DATA (as EDGE), EDGE, SAT_TEMPLATE."""
        return cls.BAD | cls.SAT | cls.NO_DATA | cls.EDGE | cls.SAT_TEMPLATE
