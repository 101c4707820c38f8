"""The catalogue columns: their names in Python and in the APDB, types, units, UCDs and meanings.

The one place that maps snake_case names to those of Rubin's APDB (ApdbSchema 10.0.0). A Python name is the
APDB name with an underscore before each word: psfFluxErr is psf_flux_err, pixelFlags_crCenter is
pixel_flags_cr_center.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.values import Table
from nightstream.errors import InputError

# A value nobody measured: what SQL calls NULL.
NULLS = {"f": np.nan, "i": 0, "b": False, "S": b""}
DTYPES = {"l": "<i8", "s": "<i2", "i": "<i4", "f": "<f4", "d": "<f8", "b": "?", "t": "S16"}

# Name, type, unit, UCD, meaning. Types: l s i integers of 8, 2, 4 bytes; f d floats of 4, 8 bytes; b boolean;
# t text.
_DIA_SOURCE = """
diaSourceId                 l -      meta.id;obs.image    number of the source
visit                       l -      meta.id;obs.image    visit it was measured in
detector                    s -      meta.id;obs.image    detector it was measured on
diaObjectId                 l -      meta.id;src          object it belongs to
ssObjectId                  l -      meta.id;src          Solar System object it belongs to
parentDiaSourceId           l -      meta.id;src          source it was deblended from
ssObjectReassocTimeMjdTai   d -      -                    when it moved to a Solar System object, MJD TAI
midpointMjdTai              d d      time.epoch           middle of the exposure, MJD TAI
exposureTime                f s      time.interval        exposure time
ra                          d deg    pos.eq.ra            right ascension, ICRS
raErr                       f deg    stat.error;pos.eq.ra error of ra times cos(dec)
dec                         d deg    pos.eq.dec           declination, ICRS
decErr                      f deg    stat.error;pos.eq.dec error of dec
ra_dec_Cov                  f deg**2 stat.covariance      covariance of ra cos(dec) and dec
x                           f pixel  pos.cartesian.x      column, 0-based pixel centres
xErr                        f pixel  stat.error;pos.cartesian.x error of x
y                           f pixel  pos.cartesian.y      row, 0-based pixel centres
yErr                        f pixel  stat.error;pos.cartesian.y error of y
centroid_flag               b -      -                    centroid failed
apFlux                      f nJy    phot.count           flux in a circle on the difference
apFluxErr                   f nJy    stat.error;phot.count error of apFlux
apFlux_flag                 b -      -                    aperture flux failed
apFlux_flag_apertureTruncated b -      -                    aperture leaves the image
isNegative                  b -      -                    detected below the background
snr                         f -      stat.snr             signal to noise at detection
psfFlux                     f nJy    phot.count           PSF flux on the difference
psfFluxErr                  f nJy    -                    error of psfFlux
psfLnL                      f -      stat.likelihood      log likelihood of the PSF fit
psfChi2                     f -      stat.fit.chi2        chi^2 of the PSF fit
psfNdata                    i -      -                    pixels in the PSF fit
psfFlux_flag                b -      -                    PSF flux failed
psfFlux_flag_edge           b -      -                    PSF leaves the image
psfFlux_flag_noGoodPixels   b -      -                    no usable pixels for the PSF fit
trailFlux                   f nJy    -                    flux of the trail model
trailFluxErr                f nJy    -                    error of trailFlux
trailRa                     d deg    pos.eq.ra            right ascension of the trail's middle
trailRaErr                  f deg    stat.error;pos.eq.ra error of trailRa times cos(dec)
trailDec                    d deg    pos.eq.dec           declination of the trail's middle
trailDecErr                 f deg    stat.error;pos.eq.dec error of trailDec
trailLength                 f arcsec -                    length of the trail
trailLengthErr              f arcsec -                    error of trailLength
trailAngle                  f deg    -                    bearing of the trail
trailAngleErr               f deg    -                    error of trailAngle
trailChi2                   f -      stat.fit.chi2        chi^2 of the trail fit
trailNdata                  i -      -                    pixels in the trail fit
trailAlgorithm              i -      -                    1 SDSS shape, 2 HSM shape
trail_flag_edge             b -      -                    trail reaches the edge
trail_flag                  b -      -                    trail fit failed
dipoleMeanFlux              f nJy    -                    mean size of the lobes' fluxes
dipoleMeanFluxErr           f nJy    stat.error           error of dipoleMeanFlux
dipoleFluxDiff              f nJy    -                    difference of the lobes' fluxes
dipoleFluxDiffErr           f nJy    stat.error           error of dipoleFluxDiff
dipoleLength                f arcsec pos.angDistance      distance of the lobes
dipoleAngle                 f deg    pos.posAng           bearing from negative to positive lobe
dipoleChi2                  f -      stat.fit.chi2        chi^2 of the dipole fit
dipoleNdata                 i -      -                    pixels in the dipole fit
scienceFlux                 f nJy    phot.count           forced PSF flux on the visit image
scienceFluxErr              f nJy    stat.error;phot.count error of scienceFlux
forced_PsfFlux_flag         b -      -                    forced PSF flux failed
forced_PsfFlux_flag_edge    b -      -                    forced PSF leaves the image
forced_PsfFlux_flag_noGoodPixels b -      -                    no usable pixels for the forced fit
templateFlux                f nJy    phot.count           forced PSF flux on the template
templateFluxErr             f nJy    stat.error;phot.count error of templateFlux
ixx                         f arcsec**2 -                    second moment along x
iyy                         f arcsec**2 -                    second moment along y
ixy                         f arcsec**2 -                    mixed second moment
ixxPSF                      f arcsec**2 -                    ixx of the PSF
iyyPSF                      f arcsec**2 -                    iyy of the PSF
ixyPSF                      f arcsec**2 -                    ixy of the PSF
shape_flag                  b -      -                    shape failed
shape_flag_no_pixels        b -      -                    no pixels for the shape
shape_flag_not_contained    b -      -                    centre outside the footprint's box
shape_flag_parent_source    b -      -                    is a blend's parent
extendedness                f -      -                    0 point, 1 extended
reliability                 f -      -                    probability of being real
reliabilityVersion          t -      -                    model that gave reliability
band                        t -      -                    filter band
isDipole                    b -      -                    a dipole fits well
dipoleFitAttempted          b -      -                    a dipole was fitted
timeProcessedMjdTai         d -      time.epoch           when this row was made, MJD TAI
timeWithdrawnMjdTai         d -      time.epoch           when this row was withdrawn, MJD TAI
bboxSize                    i pixel  -                    side of the square box around the footprint
pixelFlags                  b -      -                    pixel flags failed
pixelFlags_bad              b -      -                    bad pixel near the source
pixelFlags_cr               b -      -                    cosmic-ray pixel near the source
pixelFlags_crCenter         b -      -                    cosmic-ray pixel in the central 3 x 3
pixelFlags_edge             b -      -                    edge pixel near the source
pixelFlags_nodata           b -      -                    no-data pixel near the source
pixelFlags_nodataCenter     b -      -                    no-data pixel in the central 3 x 3
pixelFlags_interpolated     b -      -                    interpolated pixel near the source
pixelFlags_interpolatedCenter b -      -                    interpolated pixel in the central 3 x 3
pixelFlags_offimage         b -      -                    centre is off the image
pixelFlags_saturated        b -      -                    saturated pixel near the source
pixelFlags_saturatedCenter  b -      -                    saturated pixel in the central 3 x 3
pixelFlags_suspect          b -      -                    suspect pixel near the source
pixelFlags_suspectCenter    b -      -                    suspect pixel in the central 3 x 3
pixelFlags_streak           b -      -                    streak pixel near the source
pixelFlags_streakCenter     b -      -                    streak pixel in the central 3 x 3
pixelFlags_injected         b -      -                    injected pixel near the source
pixelFlags_injectedCenter   b -      -                    injected pixel in the central 3 x 3
pixelFlags_injected_template b -      -                    template-injected pixel near the source
pixelFlags_injected_templateCenter b -      -                    template-injected pixel in the central 3 x 3
glint_trail                 b -      -                    part of a glint trail
"""

# Not in the APDB; written only when measured.
_DIA_SOURCE_OURS = """
pixelFlags_badCenter        b -      -                    bad pixel in the central 3 x 3
pixelFlags_edgeCenter       b -      -                    edge pixel in the central 3 x 3
pixelFlags_saturated_templateCenter b -      -                 pixel saturated in the template, central 3 x 3
pixelFlags_high_varianceCenter b -      -                    high-variance pixel in the central 3 x 3
pixelFlags_saturated_template b -      -                    pixel saturated in the template near the source
pixelFlags_high_variance    b -      -                    high-variance pixel near the source
starResidual                b -      -                    small against the flux of the star it sits on
"""

_DIA_FORCED_SOURCE = """
diaForcedSourceId           l -      -                    number of the measurement
diaObjectId                 l -      meta.id;src          object it belongs to
ra                          d deg    pos.eq.ra            right ascension of the object, ICRS
dec                         d deg    pos.eq.dec           declination of the object, ICRS
visit                       l -      meta.id;obs.image    visit it was measured in
detector                    s -      meta.id;obs.image    detector it was measured on
psfFlux                     f nJy    phot.count           PSF flux on the difference
psfFluxErr                  f nJy    stat.error;phot.count error of psfFlux
midpointMjdTai              d d      time.epoch           middle of the exposure, MJD TAI
scienceFlux                 f nJy    phot.count           forced PSF flux on the visit image
scienceFluxErr              f nJy    stat.error;phot.count error of scienceFlux
band                        t -      meta.id;instr.filter filter band
timeProcessedMjdTai         d -      -                    when this row was made, MJD TAI
timeWithdrawnMjdTai         d -      -                    when this row was withdrawn, MJD TAI
"""

_DIA_FORCED_SOURCE_OURS = """
x                           f pixel  pos.cartesian.x      column, 0-based pixel centres
y                           f pixel  pos.cartesian.y      row, 0-based pixel centres
psfFlux_flag                b -      -                    PSF flux on the difference failed
psfFlux_flag_edge           b -      -                    PSF leaves the difference image
scienceFlux_flag            b -      -                    PSF flux on the visit image failed
scienceFlux_flag_edge       b -      -                    PSF leaves the visit image
"""

_STAR = """
sourceId                    l -      meta.id;src          number of the star
ra                          d deg    pos.eq.ra            right ascension, ICRS
raErr                       d deg    stat.error;pos.eq.ra error of ra times cos(dec)
dec                         d deg    pos.eq.dec           declination, ICRS
decErr                      d deg    stat.error;pos.eq.dec error of dec
x                           d pixel  pos.cartesian.x      column, 0-based pixel centres
xErr                        d pixel  stat.error;pos.cartesian.x error of x
y                           d pixel  pos.cartesian.y      row, 0-based pixel centres
yErr                        d pixel  stat.error;pos.cartesian.y error of y
snr                         d -      stat.snr             signal to noise at detection
psfFlux                     d nJy    phot.count           PSF flux
psfFluxErr                  d nJy    stat.error;phot.count error of psfFlux
psfChi2                     d -      stat.fit.chi2        chi^2 of the PSF fit
psfNdata                    i -      -                    pixels in the PSF fit
psfFlux_flag                b -      -                    PSF flux failed
psfFlux_flag_edge           b -      -                    PSF leaves the image
apFlux                      d nJy    phot.count           flux in a circle
apFluxErr                   d nJy    stat.error;phot.count error of apFlux
apFlux_flag                 b -      -                    aperture flux failed
centroid_flag               b -      -                    centroid failed
isIsolated                  b -      -                    no neighbour near enough to disturb it
isBlended                   b -      -                    shares its footprint with another source
footprint                   i -      meta.id              number of its footprint in the image
footprintArea               i pixel  -                    pixels of its footprint
peak                        d -      -                    largest pixel of the central 3 x 3
nVisits                     i -      meta.number          visits it was measured in
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``name`` in Python, ``apdb`` in files and databases, NumPy ``dtype``."""

    name: str
    apdb: str
    dtype: str
    unit: str  # empty for a number without unit
    ucd: str
    description: str
    optional: bool  # left out of a file when not measured, instead of filled with nulls

    @property
    def null(self):
        """What stands for "not measured": NaN, 0, False or empty text."""
        return NULLS[np.dtype(self.dtype).kind]


@dataclass(frozen=True)
class Schema:
    """A table's name and columns, in order."""

    name: str
    columns: tuple[Column, ...]

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by their Python name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def by_apdb(self) -> dict[str, Column]:
        """Columns by their APDB name."""
        return {column.apdb: column for column in self.columns}


def snake_case(apdb: str) -> str:
    """Return the Python name of an APDB column."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", apdb).lower()


def to_structured(table: Table, schema: Schema) -> np.ndarray:
    """Return ``table`` as a structured array with APDB names and types, on the host.

    Official columns that ``table`` lacks are filled with nulls (NaN, 0, False, empty); ours are left out. An
    empty dict is a table of no rows. Raises InputError for an unknown column, unequal lengths, or values the
    column's type cannot hold; floats may be rounded to float32.
    """
    lengths = _check(table, schema)
    columns = [column for column in schema.columns if column.name in table or not column.optional]
    rows = np.empty(lengths.pop() if lengths else 0, dtype=[(column.apdb, column.dtype) for column in columns])
    for column in columns:
        rows[column.apdb] = _cast(table[column.name], column) if column.name in table else column.null
    return rows


def from_structured(rows: np.ndarray, schema: Schema, names: tuple[str, ...] | None = None) -> Table:
    """Return ``rows`` as a table of contiguous columns: all, or those of ``names`` in that order."""
    unknown = set(rows.dtype.names) - set(schema.by_apdb)
    if unknown:
        raise InputError(f"{schema.name} has no column {', '.join(sorted(unknown))}")
    names = tuple(schema.by_apdb[apdb].name for apdb in rows.dtype.names) if names is None else names
    return {name: _decoded(rows[schema.by_name[name].apdb]) for name in names}


def _check(table: Table, schema: Schema) -> set[int]:
    unknown = [name for name in table if name not in schema.by_name]
    if unknown:
        raise InputError(f"{schema.name} has no column {', '.join(unknown)}")
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        raise InputError(f"columns of {schema.name} must have one length, got {sorted(lengths)}")
    return lengths


def _cast(values, column: Column) -> np.ndarray:
    """Return ``values`` with the column's dtype; refuse a cast that changes what they mean."""
    values = to_host(values) if hasattr(values, "dtype") else np.asarray(values)
    dtype = np.dtype(column.dtype)
    if dtype.kind == "S":
        return _encoded(values, column)
    if not np.can_cast(values.dtype, dtype, "same_kind") and not (dtype.kind == "b" and values.dtype.kind in "iu"):
        raise InputError(f"column {column.apdb} wants {dtype}, got {values.dtype}")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if dtype.kind in "ib" and not np.array_equal(cast, values):
        raise InputError(f"column {column.apdb} holds values that {dtype} cannot")
    return cast


def _encoded(values: np.ndarray, column: Column) -> np.ndarray:
    encoded = np.char.encode(values.astype(np.str_), "utf-8")
    if encoded.dtype.itemsize > np.dtype(column.dtype).itemsize:
        raise InputError(f"column {column.apdb} holds text of more than {np.dtype(column.dtype).itemsize} bytes")
    return encoded


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else np.ascontiguousarray(values)


def _parse(text: str, *, optional: bool) -> tuple[Column, ...]:
    columns = []
    for line in text.strip().splitlines():
        apdb, code, unit, ucd, description = line.split(maxsplit=4)
        unit, ucd = ("" if word == "-" else word for word in (unit, ucd))
        columns.append(Column(snake_case(apdb), apdb, DTYPES[code], unit, ucd, description, optional))
    return tuple(columns)


DIA_SOURCE = Schema("DiaSource", _parse(_DIA_SOURCE, optional=False) + _parse(_DIA_SOURCE_OURS, optional=True))
DIA_FORCED_SOURCE = Schema(
    "DiaForcedSource",
    _parse(_DIA_FORCED_SOURCE, optional=False) + _parse(_DIA_FORCED_SOURCE_OURS, optional=True),
)
_FLAGS = tuple(replace(c, optional=True) for c in DIA_SOURCE.columns if c.apdb.startswith("pixelFlags_"))
STAR = Schema("Source", _parse(_STAR, optional=True) + _FLAGS)
