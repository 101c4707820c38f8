"""The prompt tables: sources, objects, forced sources, detector visits, alerts; columns as in Rubin's ApdbSchema 10.0.0.

Blocks named ``_OURS`` are columns the APDB does not have. The notation is `parse_columns`'s.
"""

from __future__ import annotations

from dataclasses import replace

from nightstream.io.apdb_solar_system import MPC_ORBITS, SS_SOURCE
from nightstream.io.schema import Schema, parse_columns

__all__ = [
    "ALERT",
    "DETECTOR_VISIT_PROCESSING_SUMMARY",
    "DIA_FORCED_SOURCE",
    "DIA_OBJECT",
    "DIA_OBJECT_LAST",
    "DIA_SOURCE",
    "MPC_ORBITS",
    "SS_SOURCE",
    "STAR",
]

_DIA_SOURCE = """
diaSourceId                 l!  -      meta.id;obs.image    number of the source
visit                       l!  -      meta.id;obs.image    visit it was measured in
detector                    s!  -      meta.id;obs.image    detector it was measured on
diaObjectId                 l   -      meta.id;src          object it belongs to
ssObjectId                  l   -      meta.id;src          Solar System object it belongs to
parentDiaSourceId           l   -      meta.id;src          source it was deblended from
ssObjectReassocTimeMjdTai   d   -      -                    when it moved to a Solar System object, MJD TAI
midpointMjdTai              d!  d      time.epoch           middle of the exposure, MJD TAI
exposureTime                f   s      time.interval        exposure time
ra                          d!  deg    pos.eq.ra            right ascension, ICRS
raErr                       f   deg    stat.error;pos.eq.ra error of ra times cos(dec)
dec                         d!  deg    pos.eq.dec           declination, ICRS
decErr                      f   deg    stat.error;pos.eq.dec error of dec
ra_dec_Cov                  f   deg**2 stat.covariance      covariance of ra cos(dec) and dec
x                           f!  pixel  pos.cartesian.x      column, 0-based pixel centres
xErr                        f   pixel  stat.error;pos.cartesian.x error of x
y                           f!  pixel  pos.cartesian.y      row, 0-based pixel centres
yErr                        f   pixel  stat.error;pos.cartesian.y error of y
centroid_flag               b   -      -                    centroid failed
apFlux                      f   nJy    phot.count           flux in a circle on the difference
apFluxErr                   f   nJy    stat.error;phot.count error of apFlux
apFlux_flag                 b   -      -                    aperture flux failed
apFlux_flag_apertureTruncated b   -      -                    aperture leaves the image
isNegative                  b   -      -                    detected below the background
snr                         f   -      stat.snr             signal to noise at detection
psfFlux                     f   nJy    phot.count           PSF flux on the difference
psfFluxErr                  f   nJy    -                    error of psfFlux
psfLnL                      f   -      stat.likelihood      log likelihood of the PSF fit
psfChi2                     f   -      stat.fit.chi2        chi^2 of the PSF fit
psfNdata                    i!  -      -                    pixels in the PSF fit
psfFlux_flag                b   -      -                    PSF flux failed
psfFlux_flag_edge           b   -      -                    PSF leaves the image
psfFlux_flag_noGoodPixels   b   -      -                    no usable pixels for the PSF fit
trailFlux                   f   nJy    -                    flux of the trail model
trailFluxErr                f   nJy    -                    error of trailFlux
trailRa                     d   deg    pos.eq.ra            right ascension of the trail's middle
trailRaErr                  f   deg    stat.error;pos.eq.ra error of trailRa times cos(dec)
trailDec                    d   deg    pos.eq.dec           declination of the trail's middle
trailDecErr                 f   deg    stat.error;pos.eq.dec error of trailDec
trailLength                 f   arcsec -                    length of the trail
trailLengthErr              f   arcsec -                    error of trailLength
trailAngle                  f   deg    -                    bearing of the trail
trailAngleErr               f   deg    -                    error of trailAngle
trailChi2                   f   -      stat.fit.chi2        chi^2 of the trail fit
trailNdata                  i!  -      -                    pixels in the trail fit
trailAlgorithm              i   -      -                    1 SDSS shape, 2 HSM shape
trail_flag_edge             b   -      -                    trail reaches the edge
trail_flag                  b   -      -                    trail fit failed
dipoleMeanFlux              f   nJy    -                    mean size of the lobes' fluxes
dipoleMeanFluxErr           f   nJy    stat.error           error of dipoleMeanFlux
dipoleFluxDiff              f   nJy    -                    difference of the lobes' fluxes
dipoleFluxDiffErr           f   nJy    stat.error           error of dipoleFluxDiff
dipoleLength                f   arcsec pos.angDistance      distance of the lobes
dipoleAngle                 f   deg    pos.posAng           bearing from negative to positive lobe
dipoleChi2                  f   -      stat.fit.chi2        chi^2 of the dipole fit
dipoleNdata                 i!  -      -                    pixels in the dipole fit
scienceFlux                 f   nJy    phot.count           forced PSF flux on the visit image
scienceFluxErr              f   nJy    stat.error;phot.count error of scienceFlux
forced_PsfFlux_flag         b   -      -                    forced PSF flux failed
forced_PsfFlux_flag_edge    b   -      -                    forced PSF leaves the image
forced_PsfFlux_flag_noGoodPixels b   -      -                    no usable pixels for the forced fit
templateFlux                f   nJy    phot.count           forced PSF flux on the template
templateFluxErr             f   nJy    stat.error;phot.count error of templateFlux
ixx                         f   arcsec**2 -                    second moment along x
iyy                         f   arcsec**2 -                    second moment along y
ixy                         f   arcsec**2 -                    mixed second moment
ixxPSF                      f   arcsec**2 -                    ixx of the PSF
iyyPSF                      f   arcsec**2 -                    iyy of the PSF
ixyPSF                      f   arcsec**2 -                    ixy of the PSF
shape_flag                  b   -      -                    shape failed
shape_flag_no_pixels        b   -      -                    no pixels for the shape
shape_flag_not_contained    b   -      -                    centre outside the footprint's box
shape_flag_parent_source    b   -      -                    is a blend's parent
extendedness                f   -      -                    0 point, 1 extended
reliability                 f   -      -                    probability of being real
reliabilityVersion          t   -      -                    model that gave reliability
band                        t   -      -                    filter band
isDipole                    b   -      -                    a dipole fits well
dipoleFitAttempted          b   -      -                    a dipole was fitted
timeProcessedMjdTai         d!  -      time.epoch           when this row was made, MJD TAI
timeWithdrawnMjdTai         d   -      time.epoch           when this row was withdrawn, MJD TAI
bboxSize                    i!  pixel  -                    side of the square box around the footprint
pixelFlags                  b   -      -                    pixel flags failed
pixelFlags_bad              b   -      -                    bad pixel near the source
pixelFlags_cr               b   -      -                    cosmic-ray pixel near the source
pixelFlags_crCenter         b   -      -                    cosmic-ray pixel in the central 3 x 3
pixelFlags_edge             b   -      -                    edge pixel near the source
pixelFlags_nodata           b   -      -                    no-data pixel near the source
pixelFlags_nodataCenter     b   -      -                    no-data pixel in the central 3 x 3
pixelFlags_interpolated     b   -      -                    interpolated pixel near the source
pixelFlags_interpolatedCenter b   -      -                    interpolated pixel in the central 3 x 3
pixelFlags_offimage         b   -      -                    centre is off the image
pixelFlags_saturated        b   -      -                    saturated pixel near the source
pixelFlags_saturatedCenter  b   -      -                    saturated pixel in the central 3 x 3
pixelFlags_suspect          b   -      -                    suspect pixel near the source
pixelFlags_suspectCenter    b   -      -                    suspect pixel in the central 3 x 3
pixelFlags_streak           b   -      -                    streak pixel near the source
pixelFlags_streakCenter     b   -      -                    streak pixel in the central 3 x 3
pixelFlags_injected         b   -      -                    injected pixel near the source
pixelFlags_injectedCenter   b   -      -                    injected pixel in the central 3 x 3
pixelFlags_injected_template b   -      -                    template-injected pixel near the source
pixelFlags_injected_templateCenter b   -      -                    template-injected pixel in the central 3 x 3
glint_trail                 b   -      -                    part of a glint trail
"""

# Written only when measured.
_DIA_SOURCE_OURS = """
pixelFlags_badCenter        b   -      -                    bad pixel in the central 3 x 3
pixelFlags_edgeCenter       b   -      -                    edge pixel in the central 3 x 3
pixelFlags_saturated_templateCenter b   -      -                    pixel saturated in the template, central 3 x 3
pixelFlags_high_varianceCenter b   -      -                    high-variance pixel in the central 3 x 3
pixelFlags_saturated_template b   -      -                    pixel saturated in the template near the source
pixelFlags_high_variance    b   -      -                    high-variance pixel near the source
starResidual                b   -      -                    small against the flux of the star it sits on
"""

_DIA_FORCED_SOURCE = """
diaForcedSourceId           l!  -      -                    number of the measurement
diaObjectId                 l!  -      meta.id;src          object it belongs to
ra                          d!  deg    pos.eq.ra            right ascension of the object, ICRS
dec                         d!  deg    pos.eq.dec           declination of the object, ICRS
visit                       l!  -      meta.id;obs.image    visit it was measured in
detector                    s!  -      meta.id;obs.image    detector it was measured on
psfFlux                     f   nJy    phot.count           PSF flux on the difference
psfFluxErr                  f   nJy    stat.error;phot.count error of psfFlux
midpointMjdTai              d!  d      time.epoch           middle of the exposure, MJD TAI
scienceFlux                 f   nJy    phot.count           forced PSF flux on the visit image
scienceFluxErr              f   nJy    stat.error;phot.count error of scienceFlux
band                        t   -      meta.id;instr.filter filter band
timeProcessedMjdTai         d!  -      -                    when this row was made, MJD TAI
timeWithdrawnMjdTai         d   -      -                    when this row was withdrawn, MJD TAI
"""

_DIA_FORCED_SOURCE_OURS = """
x                           f   pixel  pos.cartesian.x      column, 0-based pixel centres
y                           f   pixel  pos.cartesian.y      row, 0-based pixel centres
psfFlux_flag                b   -      -                    PSF flux on the difference failed
psfFlux_flag_edge           b   -      -                    PSF leaves the difference image
scienceFlux_flag            b   -      -                    PSF flux on the visit image failed
scienceFlux_flag_edge       b   -      -                    PSF leaves the visit image
diaSourceId                 l   -      meta.id;src          source at whose position it was measured
psfFluxLimit                f   nJy    phot.count           flux a source needs there for 5 sigma
"""

_DIA_OBJECT = """
diaObjectId                 l!  -      meta.id;src          number of the object
validityStartMjdTai         d!  -      time.epoch           from when this version holds, MJD TAI
validityEndMjdTai           d   -      time.epoch           until when this version holds, MJD TAI
ra                          d!  deg    pos.eq.ra            right ascension, ICRS
raErr                       f   deg    stat.error;pos.eq.ra error of ra times cos(dec)
dec                         d!  deg    pos.eq.dec           declination, ICRS
decErr                      f   deg    stat.error;pos.eq.dec error of dec
ra_dec_Cov                  f   deg**2 -                    covariance of ra cos(dec) and dec

*_psfFluxMean               f   nJy    phot.count           weighted mean PSF flux on * differences
*_psfFluxMeanErr            f   nJy    stat.error           error of *_psfFluxMean
*_psfFluxSigma              f   nJy    stat.stdev           scatter of the PSF fluxes on * differences
*_psfFluxNdata              i!  -      -                    * sources
*_fpFluxMean                f   nJy    phot.count           weighted mean forced flux on * differences
*_fpFluxMeanErr             f   nJy    stat.error           error of *_fpFluxMean

*_scienceFluxMean           f   nJy    phot.count           weighted mean forced flux on * visit images
*_scienceFluxMeanErr        f   nJy    stat.error           error of *_scienceFluxMean

*_psfFluxMin                f   nJy    -                    least PSF flux on * differences
*_psfFluxMax                f   nJy    -                    greatest PSF flux on * differences
*_psfFluxMaxSlope           f   nJy/d  -                    steepest change between successive * PSF fluxes
*_psfFluxErrMean            f   nJy    -                    mean error of the * PSF fluxes

firstDiaSourceMjdTai        d   -      time.epoch           time of the first source, MJD TAI
lastDiaSourceMjdTai         d   -      time.epoch           time of the last source, MJD TAI
nDiaSources                 i!  -      -                    sources of the object
"""

_DIA_OBJECT_OURS = """
radecMjdTai                 d   -      time.epoch           time of ra and dec, MJD TAI
pmRa                        f   mas/yr pos.pm;pos.eq.ra     proper motion in ra times cos(dec)
pmRaErr                     f   mas/yr stat.error;pos.pm;pos.eq.ra error of pmRa
pmDec                       f   mas/yr pos.pm;pos.eq.dec    proper motion in dec
pmDecErr                    f   mas/yr stat.error;pos.pm;pos.eq.dec error of pmDec
parallax                    f   mas    pos.parallax         parallax
parallaxErr                 f   mas    stat.error;pos.parallax error of parallax
pmRa_pmDec_Cov              f   mas**2/yr**2 stat.covariance covariance of pmRa and pmDec
pmRa_parallax_Cov           f   mas**2/yr stat.covariance   covariance of pmRa and parallax
pmDec_parallax_Cov          f   mas**2/yr stat.covariance   covariance of pmDec and parallax
pmParallaxChi2              f   -      stat.fit.chi2        chi^2 of the positions about the fit
pmParallaxNdata             i   -      meta.number          positions in the fit of motion and parallax

*_psfFluxChi2               f   -      stat.fit.chi2        chi^2 of the PSF fluxes on * differences about their mean
*_psfFluxMAD                f   nJy    stat.stdev           median distance of the * PSF fluxes to their median
*_psfFluxSkew               f   -      stat.param           skewness of the * PSF fluxes
*_psfFluxPercentile05       f   nJy    stat.rank            5th percentile of the * PSF fluxes
*_psfFluxPercentile25       f   nJy    stat.rank            25th percentile of the * PSF fluxes
*_psfFluxPercentile50       f   nJy    stat.median          median of the * PSF fluxes
*_psfFluxPercentile75       f   nJy    stat.rank            75th percentile of the * PSF fluxes
*_psfFluxPercentile95       f   nJy    stat.rank            95th percentile of the * PSF fluxes
*_psfFluxStetsonJ           f   -      stat.param           Stetson's J of the * PSF fluxes
*_psfFluxLinearSlope        f   nJy/d  stat.fit.param       slope of the line through the * PSF fluxes
*_psfFluxLinearIntercept    f   nJy    stat.fit.param       that line at firstDiaSourceMjdTai
*_scienceFluxSigma          f   nJy    stat.stdev           scatter of the forced fluxes on * visit images
*_psfFluxPeriod             f   d      time.period          most likely period of the * fluxes
*_psfFluxPeriodPower        f   -      stat.fit.goodness    share of chi^2 that a sinusoid of that period removes
*_psfFluxPeriodFap          f   -      stat.probability     chance that noise alone gives such power
*_psfFluxPeriodAmplitude    f   nJy    src.var.amplitude    amplitude of the * sinusoid of the period of all bands
*_psfFluxPeriodPhase        f   -      -                    phase of its maximum, in periods after firstDiaSourceMjdTai

period                      f   d      time.period          most likely period of all bands together
periodPower                 f   -      stat.fit.goodness    share of chi^2 that sinusoids of that period remove
periodFap                   f   -      stat.probability     chance that noise alone gives such power
"""

# The columns of DiaObject that association looks at, kept apart for quick reading; those after nDiaSources are ours.
_DIA_OBJECT_LAST = """
diaObjectId validityStartMjdTai lastDiaSourceMjdTai ra raErr dec decErr ra_dec_Cov firstDiaSourceMjdTai nDiaSources
radecMjdTai pmRa pmRaErr pmDec pmDecErr
"""

_DETECTOR_VISIT_PROCESSING_SUMMARY = """
visit                       l!  -      meta.id;obs.image    visit
detector                    s!  -      meta.id;obs.image    detector
ra                          d   deg    -                    right ascension of the middle, ICRS
dec                         d   deg    -                    declination of the middle, ICRS
pixelScale                  f   arcsec/pixel -                    size of a pixel
zeroPoint                   f   mag    -                    magnitude of one count per second
psfSigma                    f   pixel  -                    Gaussian width of the PSF in the middle
skyBg                       f   adu    -                    sky level (electrons)
skyNoise                    f   adu    -                    scatter of the sky (electrons)
seeing                      d   arcsec -                    full width of the PSF at half maximum
xSize                       l!  pixel  -                    columns
ySize                       l!  pixel  -                    rows
llcra                       d   deg    -                    right ascension of the corner at low x, low y
llcdec                      d   deg    -                    its declination
ulcra                       d   deg    -                    right ascension of the corner at low x, high y
ulcdec                      d   deg    -                    its declination
urcra                       d   deg    -                    right ascension of the corner at high x, high y
urcdec                      d   deg    -                    its declination
lrcra                       d   deg    -                    right ascension of the corner at high x, low y
lrcdec                      d   deg    -                    its declination
astromOffsetMean            d   arcsec -                    mean distance of matched stars from the reference
astromOffsetStd             d   arcsec -                    scatter of that distance
nPsfStar                    i!  -      -                    stars the PSF was made of
"""

_DETECTOR_VISIT_PROCESSING_SUMMARY_OURS = """
band                        t!  -      meta.id;instr.filter filter band
midpointMjdTai              d!  d      time.epoch           middle of the exposure, MJD TAI
exposureTime                f   s      time.interval        exposure time
psfFluxLimit                f   nJy    phot.count           flux a source needs on the difference for 5 sigma
nDiaSources                 i   -      meta.number          sources measured
productPath                 t256 -      meta.ref.url         file of the detector, from the output folder
timeProcessedMjdTai         d   -      time.epoch           when these rows were made, MJD TAI
"""

_ALERT = """
diaSourceId                 l!  -      meta.id;src          source that made the alert
diaObjectId                 l   -      meta.id;src          object it belongs to
ssObjectId                  l   -      meta.id;src          Solar System object it belongs to
visit                       l!  -      meta.id;obs.image    visit
detector                    s!  -      meta.id;obs.image    detector
alertFile                   t64! -      meta.ref.url         file that holds the packet
offset                      l!  byte   -                    first byte of the packet in the file
length                      l!  byte   -                    bytes of the packet
reliability                 f   -      -                    probability of being real
readoutMjdTai               d!  d      time.epoch           when the visit was read out, MJD TAI
sentMjdTai                  d   d      time.epoch           when the packet was sent, MJD TAI
schemaVersion               t!  -      meta.version         version of the packet schema
"""

_STAR = """
sourceId                    l   -      meta.id;src          number of the star
ra                          d   deg    pos.eq.ra            right ascension, ICRS
raErr                       d   deg    stat.error;pos.eq.ra error of ra times cos(dec)
dec                         d   deg    pos.eq.dec           declination, ICRS
decErr                      d   deg    stat.error;pos.eq.dec error of dec
x                           d   pixel  pos.cartesian.x      column, 0-based pixel centres
xErr                        d   pixel  stat.error;pos.cartesian.x error of x
y                           d   pixel  pos.cartesian.y      row, 0-based pixel centres
yErr                        d   pixel  stat.error;pos.cartesian.y error of y
snr                         d   -      stat.snr             signal to noise at detection
psfFlux                     d   nJy    phot.count           PSF flux
psfFluxErr                  d   nJy    stat.error;phot.count error of psfFlux
psfChi2                     d   -      stat.fit.chi2        chi^2 of the PSF fit
psfNdata                    i   -      -                    pixels in the PSF fit
psfFlux_flag                b   -      -                    PSF flux failed
psfFlux_flag_edge           b   -      -                    PSF leaves the image
apFlux                      d   nJy    phot.count           flux in a circle
apFluxErr                   d   nJy    stat.error;phot.count error of apFlux
apFlux_flag                 b   -      -                    aperture flux failed
centroid_flag               b   -      -                    centroid failed
isIsolated                  b   -      -                    no neighbour near enough to disturb it
isBlended                   b   -      -                    shares its footprint with another source
footprint                   i   -      meta.id              number of its footprint in the image
footprintArea               i   pixel  -                    pixels of its footprint
peak                        d   -      -                    largest pixel of the central 3 x 3
nVisits                     i   -      meta.number          visits it was measured in
"""


def _schema(name: str, official: str, ours: str = "") -> Schema:
    return Schema(name, parse_columns(official) + parse_columns(ours, optional=True))


DIA_SOURCE = _schema("DiaSource", _DIA_SOURCE, _DIA_SOURCE_OURS)
DIA_FORCED_SOURCE = _schema("DiaForcedSource", _DIA_FORCED_SOURCE, _DIA_FORCED_SOURCE_OURS)
DIA_OBJECT = _schema("DiaObject", _DIA_OBJECT, _DIA_OBJECT_OURS)
DIA_OBJECT_LAST = Schema("DiaObjectLast", tuple(DIA_OBJECT.by_apdb[name] for name in _DIA_OBJECT_LAST.split()))
DETECTOR_VISIT_PROCESSING_SUMMARY = _schema(
    "DetectorVisitProcessingSummary", _DETECTOR_VISIT_PROCESSING_SUMMARY, _DETECTOR_VISIT_PROCESSING_SUMMARY_OURS
)
ALERT = _schema("Alert", _ALERT)
_FLAGS = tuple(replace(c, optional=True) for c in DIA_SOURCE.columns if c.apdb.startswith("pixelFlags_"))
STAR = Schema("Source", parse_columns(_STAR, optional=True) + _FLAGS)
