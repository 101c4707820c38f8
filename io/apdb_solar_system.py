"""The Solar System tables of Rubin's ApdbSchema 10.0.0: observations of known objects, and their orbits."""

from __future__ import annotations

from nightstream.io.schema import Schema, parse_columns

_SS_SOURCE = """
diaSourceId                 l!  -      meta.id;src          source of this observation
ssObjectId                  l!  -      meta.id;src          Solar System object seen
designation                 t32 -      meta.id;src          provisional designation, unpacked
eclLambda                   d!  deg    pos.ecliptic.lon     observed ecliptic longitude
eclBeta                     d!  deg    pos.ecliptic.lat     observed ecliptic latitude
galLon                      d!  deg    pos.galactic.lon     observed Galactic longitude
galLat                      d!  deg    pos.galactic.lat     observed Galactic latitude
elongation                  f   deg    pos.phaseAng         angle between object and Sun
phaseAngle                  f   deg    pos.phaseAng         angle Sun, object, observer
topoRange                   f   AU     pos.distance         distance from the observer
topoRangeRate               f   km/s   phys.veloc           speed away from the observer
helioRange                  f   AU     pos.distance;pos.heliocentric distance from the Sun
helioRangeRate              f   km/s   phys.veloc;pos.heliocentric speed away from the Sun
ephRa                       d   deg    pos.eq.ra;meta.modelled;pos.ephem predicted right ascension, ICRS
ephDec                      d   deg    pos.eq.dec;meta.modelled;pos.ephem predicted declination, ICRS
ephVmag                     f   mag    phot.mag;em.opt.V    predicted V magnitude
ephRate                     f   deg/d  pos.pm;pos.ephem     predicted motion on the sky
ephRateRa                   f   deg/d  pos.pm;pos.eq.ra;pos.ephem predicted motion in ra, times cos(dec)
ephRateDec                  f   deg/d  pos.pm;pos.eq.dec;pos.ephem predicted motion in dec
ephOffset                   f   arcsec pos.angDistance;stat.fit.omc observed from predicted position
ephOffsetRa                 d   arcsec pos.eq.ra;stat.fit.omc observed minus predicted ra, times cos(dec)
ephOffsetDec                d   arcsec pos.eq.dec;stat.fit.omc observed minus predicted dec
ephOffsetAlongTrack         f   arcsec pos.angDistance;stat.fit.omc observed minus predicted, along the motion
ephOffsetCrossTrack         f   arcsec pos.angDistance;stat.fit.omc observed minus predicted, across the motion
helio_x                     f   AU     pos.cartesian.x;pos.heliocentric x from the Sun, ICRS
helio_y                     f   AU     pos.cartesian.y;pos.heliocentric y from the Sun, ICRS
helio_z                     f   AU     pos.cartesian.z;pos.heliocentric z from the Sun, ICRS
helio_vx                    f   km/s   phys.veloc;pos.cartesian.x velocity along x from the Sun
helio_vy                    f   km/s   phys.veloc;pos.cartesian.y velocity along y from the Sun
helio_vz                    f   km/s   phys.veloc;pos.cartesian.z velocity along z from the Sun
helio_vtot                  f   km/s   phys.veloc;pos.heliocentric speed relative to the Sun
topo_x                      f   AU     pos.cartesian.x      x from the observer, ICRS
topo_y                      f   AU     pos.cartesian.y      y from the observer, ICRS
topo_z                      f   AU     pos.cartesian.z      z from the observer, ICRS
topo_vx                     f   km/s   phys.veloc;pos.cartesian.x velocity along x from the observer
topo_vy                     f   km/s   phys.veloc;pos.cartesian.y velocity along y from the observer
topo_vz                     f   km/s   phys.veloc;pos.cartesian.z velocity along z from the observer
topo_vtot                   f   km/s   phys.veloc           speed relative to the observer
diaDistanceRank             s   -      -                    1 for the source nearest to the prediction
"""

_MPC_ORBITS = """
id                          i!  -      meta.id;src          row number at the MPC
designation                 t32! -      meta.id;src          provisional designation, unpacked
packed_primary_provisional_designation t32! -      meta.id;src          principal designation, packed
unpacked_primary_provisional_designation t32! -      meta.id;src          principal designation, unpacked
mpc_orb_jsonb               t16384 -      -                    the whole orbit solution as JSON
created_at                  m   -      time.creation;meta.dataset when the row was made, UTC
updated_at                  m   -      time.processing;meta.dataset when the row last changed, UTC
orbit_type_int              i   -      -                    number of the orbit class
u_param                     i   -      -                    uncertainty parameter U
nopp                        i   -      -                    oppositions observed
arc_length_total            d   d      -                    time spanned by all observations
arc_length_sel              d   d      -                    time spanned by the observations used
nobs_total                  i   -      -                    observations there are
nobs_total_sel              i   -      -                    observations used
a                           d   AU     pos.distance;src.orbital semi-major axis
q                           d   AU     pos.distance;src.orbital perihelion distance
e                           d   -      src.orbital.eccentricity eccentricity
i                           d   deg    src.orbital.inclination inclination
node                        d   deg    src.orbital.node     longitude of the ascending node
argperi                     d   deg    src.orbital.periastron argument of perihelion
peri_time                   d   d      -                    time of perihelion
yarkovsky                   d   1e-10.au.d-2 -                    Yarkovsky acceleration
srp                         d   m2.t-1 -                    radiation pressure
a1                          d   m2.t-1 -                    non-gravitational A1, radial
a2                          d   m2.t-1 -                    non-gravitational A2, transverse
a3                          d   m2.t-1 -                    non-gravitational A3, normal
dt                          d   -      -                    delay of the non-gravitational forces
mean_anomaly                d   deg    src.orbital.meanAnomaly mean anomaly
period                      d   d      time.period.revolution;src.orbital orbital period
mean_motion                 d   deg.d-1 src.orbital.meanMotion mean motion
a_unc                       d   AU     stat.error;pos.distance;src.orbital error of a
q_unc                       d   AU     stat.error;pos.distance;src.orbital error of q
e_unc                       d   -      stat.error;src.orbital.eccentricity error of e
i_unc                       d   deg    stat.error;src.orbital.inclination error of i
node_unc                    d   deg    stat.error;src.orbital.node error of node
argperi_unc                 d   deg    stat.error;src.orbital.periastron error of argperi
peri_time_unc               d   d      -                    error of peri_time
yarkovsky_unc               d   1e-10.au.d-2 -                    error of yarkovsky
srp_unc                     d   m2.t-1 -                    error of srp
a1_unc                      d   m2.t-1 -                    error of a1
a2_unc                      d   m2.t-1 -                    error of a2
a3_unc                      d   m2.t-1 -                    error of a3
dt_unc                      d   -      -                    error of dt
mean_anomaly_unc            d   deg    stat.error;src.orbital.meanAnomaly error of mean_anomaly
period_unc                  d   d      stat.error;time.period.revolution;src.orbital error of period
mean_motion_unc             d   deg.d-1 stat.error;src.orbital.meanMotion error of mean_motion
epoch_mjd                   d   d      time.epoch;src.orbital epoch of the elements, MJD TT
h                           d   mag    phys.magAbs          absolute magnitude H
g                           d   -      -                    slope parameter G
not_normalized_rms          d   arcsec stat.rms;stat.fit    scatter about the orbit
normalized_rms              d   -      stat.rms;stat.fit    scatter about the orbit in errors
earth_moid                  d   AU     pos.distance;src.orbital nearest approach of the orbit to the Earth's
fitting_datetime            m   -      -                    when the orbit was fitted, UTC
"""

SS_SOURCE = Schema("SSSource", parse_columns(_SS_SOURCE))
MPC_ORBITS = Schema("mpc_orbits", parse_columns(_MPC_ORBITS))
