"""The simulated survey: what is put in can be measured back, and the same seed gives the same bits."""

import dataclasses

import numpy as np
import pytest

from nightstream.engine.camera import Amplifier, Box, Detector
from nightstream.engine.config import AssociateConfig
from nightstream.engine.solar_system import predictions_for
from nightstream.errors import ConfigError
from nightstream.io.cameras import load_camera
from nightstream.io.catalogues import read_positions, read_reference
from nightstream.io.ephemerides import read_ephemerides
from nightstream.kernels.wcs import Wcs
from nightstream.simulate import survey as surveys
from nightstream.simulate.detector import COSMIC_RAY_ELECTRONS, draw_cosmic_rays, expose, make_detector_truth
from nightstream.simulate.psf import MoffatPsf
from nightstream.simulate.random import Stream, generator
from nightstream.simulate.scene import draw_galaxies, draw_points, galaxy_stamp
from nightstream.simulate.sky import asteroid_positions, make_sky, point_sources, transient_flux
from nightstream.simulate.truth import read_table, write_ephemerides

FLAT_TERMS = (0.0, 0.0, 0.0, 0.0)
COUNTS = {"bias": 1, "dark": 0, "flat": 1, "template": 1, "science": 2}


def small_detector(gain=1.7, read_noise=7.0) -> Detector:
    """Two amplifiers, the second mirrored both ways; 200 x 256 pixels."""
    shared = {
        "raw": Box(0, 144, 0, 208), "data": Box(4, 132, 0, 200), "serial_overscan": Box(132, 144, 0, 200),
        "parallel_overscan": Box(4, 132, 200, 208), "gain": gain, "read_noise": read_noise, "saturation_adu": 60000.0,
    }  # fmt: skip
    left = Amplifier(name="A", hdu="A", detector=Box(0, 128, 0, 200), flip_x=False, flip_y=False, **shared)
    right = Amplifier(name="B", hdu="B", detector=Box(128, 256, 0, 200), flip_x=True, flip_y=True, **shared)
    return Detector(id=3, name="D3", shape=(200, 256), amplifiers=(left, right))


def moffat_psf(fwhm_pix=4.0, e1=0.0, e2=0.0) -> MoffatPsf:
    return MoffatPsf(fwhm_pix=fwhm_pix, origin=(0.0, 0.0), radius_pix=1000.0, fwhm_terms=FLAT_TERMS,
                     e1_terms=(e1, 0.0, 0.0, 0.0), e2_terms=(e2, 0.0, 0.0, 0.0))  # fmt: skip


def points(**columns) -> dict:
    count = len(columns["x"])
    table = {"trail_x": np.zeros(count), "trail_y": np.zeros(count)} | columns
    return {name: np.asarray(values, dtype=float) for name, values in table.items()}


def assemble(pixels, detector):
    """Overscan-subtracted detector image in electrons."""
    image = np.zeros(detector.shape)
    for raw, amplifier in zip(pixels.astype(float), detector.amplifiers, strict=True):
        level = raw[amplifier.serial_overscan.slices].mean(axis=1)
        part = (raw[amplifier.data.slices] - level[:, None]) * amplifier.gain
        image[amplifier.detector.slices] = part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
    return image


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """One detector of the simulator's camera: a bias, a flat, a template and two science visits."""
    return surveys.simulate_survey(
        tmp_path_factory.mktemp("survey"), n_detectors=1, n_bias=1, n_dark=0, n_flat=1, n_template_visits=1,
        n_science_visits=2, seed=11,
    )  # fmt: skip


def test_photon_transfer_of_flats_gives_the_gain():
    """Half the variance of the difference of two flats is the mean over the gain, plus the read noise."""
    detector = small_detector()
    truth = make_detector_truth(detector, seed=1)
    flats = [
        expose(truth, np.full(detector.shape, 20000.0, np.float32), dark_time_s=0.0, seed=1, exposure=i)[0].astype(float)
        for i in (1, 2)
    ]
    for index, amplifier in enumerate(detector.amplifiers):
        first, second = (flat[index][amplifier.data.slices] for flat in flats)
        bias = truth.bias_adu[index][amplifier.data.slices]
        good = first - bias > 0.5 * 20000.0 / amplifier.gain
        variance = np.var((first - second)[good]) / 2 - (amplifier.read_noise / amplifier.gain) ** 2
        gain = np.mean((0.5 * (first + second) - bias)[good]) / variance
        # a variance from N pixels is known to sqrt(2/N); the drift of a few adu adds less than 1e-3
        assert gain == pytest.approx(amplifier.gain, rel=5 * np.sqrt(2 / good.sum()) + 1e-3)


def test_overscan_scatter_is_the_read_noise():
    """Pixel scatter within an overscan row is read noise over gain, plus the rounding to whole counts."""
    detector = small_detector()
    pixels, _ = expose(make_detector_truth(detector, seed=1), None, dark_time_s=0.0, seed=1, exposure=5)
    for index, amplifier in enumerate(detector.amplifiers):
        rows = pixels[index][amplifier.serial_overscan.slices].astype(float)
        variance = rows.var(axis=1, ddof=1).mean() - 1 / 12
        expected = (amplifier.read_noise / amplifier.gain) ** 2
        assert variance == pytest.approx(expected, rel=5 * np.sqrt(2 / rows.size))


def test_dark_frame_counts_the_dark_current():
    """Electrons of a closed-shutter exposure are the dark rate times the time, hot pixels included."""
    detector = small_detector(read_noise=1.0)
    truth = make_detector_truth(detector, seed=4)
    truth = dataclasses.replace(truth, bias_adu=np.full_like(truth.bias_adu, 1000.0))
    pixels, rays = expose(truth, None, dark_time_s=400.0, seed=4, exposure=1)
    image = assemble(pixels, detector)
    quiet = (truth.dark < 1.0) & (rays == 0)
    expected = truth.dark[quiet].mean() * 400.0
    sigma = np.sqrt((expected + 1.0) / quiet.sum() + 1.0 / (2 * 200 * 12))  # the overscan's own noise is common to a row
    assert image[quiet].mean() == pytest.approx(expected, abs=5 * sigma)
    hot = (truth.dark > 1.0) & (truth.dark < 200.0) & (rays == 0)  # not those that saturate
    np.testing.assert_allclose(image[hot], truth.dark[hot] * 400.0, rtol=0, atol=6 * np.sqrt(200.0 * 400.0))


def test_counts_are_clipped_at_16_bits():
    """Light beyond the converter's range reads 65535, never wraps around."""
    detector = small_detector()
    light = np.zeros(detector.shape, np.float32)
    light[50:60, 50:60] = 1e6
    pixels, _ = expose(make_detector_truth(detector, seed=1), light, dark_time_s=0.0, seed=1, exposure=1)
    assert pixels.dtype == np.uint16
    assert (pixels[0][50:60, 54:64] == 65535).all()


def test_dead_columns_collect_no_light():
    """Where the response is zero, a flat is as dark as a bias."""
    detector = small_detector()
    truth = make_detector_truth(detector, seed=2)
    light = np.full(detector.shape, 20000.0, np.float32)
    pixels, rays = expose(truth, light, dark_time_s=0.0, seed=2, exposure=1)
    image = assemble(pixels, detector)
    assert truth.dead.any()
    assert np.abs(image[truth.dead & (rays == 0)]).max() < 150.0


def test_same_seed_same_bits_and_other_keys_other_bits():
    """Pixels depend on seed, exposure and detector alone."""
    detector = small_detector()
    light = np.full(detector.shape, 100.0, np.float32)

    def pixels(seed, exposure, identity=3):
        truth = make_detector_truth(dataclasses.replace(detector, id=identity), seed)
        return expose(truth, light, dark_time_s=30.0, seed=seed, exposure=exposure)[0]

    np.testing.assert_array_equal(pixels(1, 7), pixels(1, 7))
    for other in (pixels(2, 7), pixels(1, 8), pixels(1, 7, identity=4)):
        assert np.count_nonzero(other != pixels(1, 7)) > 0.5 * other.size


def test_streams_do_not_share_numbers():
    """No two purposes, visits or detectors draw the same numbers."""
    keys = [(stream, visit, detector) for stream in Stream for visit in (0, 1) for detector in (0, 1)]
    draws = {generator(1, *key).random() for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("side", [64, 128])
def test_galaxy_flux_is_one_and_centred(side):
    """A galaxy's stamp holds its flux but for the profile's far wings, and its centroid is where it was
    asked."""
    x, y = 100.3, 200.7
    stamp = galaxy_stamp(x, y, 3.0, 0.2, -0.1, moffat_psf(), side)
    offset = np.arange(side) - side // 2
    # the Moffat wing beyond radius r holds (1 + r^2/a^2)^(1 - beta) of the flux, 0.1 % at 32 pixels
    assert stamp.sum() == pytest.approx(1.0, abs=2e-3)
    centre = stamp[1:, 1:]  # symmetric about the middle pixel
    assert (centre.sum(0) * offset[1:]).sum() / centre.sum() == pytest.approx(x - 100, abs=5e-3)
    assert (centre.sum(1) * offset[1:]).sum() / centre.sum() == pytest.approx(y - 201, abs=5e-3)


def test_tiny_galaxy_is_a_star():
    """A galaxy of vanishing size looks like the point-spread function."""
    psf = moffat_psf(e1=0.05)
    star, galaxy = np.zeros((101, 101)), np.zeros((101, 101))
    draw_points(star, points(x=[50.2], y=[49.6], electrons=[1e5]), psf, noise=1.0)
    columns = {"x": 50.2, "y": 49.6, "electrons": 1e5, "half_light_pix": 1e-3, "e1": 0.0, "e2": 0.0}
    draw_galaxies(galaxy, {name: np.array([value]) for name, value in columns.items()}, psf)
    np.testing.assert_allclose(galaxy[30:70, 30:70], star[30:70, 30:70], atol=1e-3 * star.max())


def test_trail_keeps_flux_and_lengthens_the_second_moment():
    """A trail of length L has the star's flux and L^2/12 more variance along it."""
    psf = moffat_psf()
    star, trail = np.zeros((201, 201)), np.zeros((201, 201))
    draw_points(star, points(x=[100.0], y=[100.0], electrons=[1e5]), psf, noise=1.0)
    draw_points(trail, points(x=[100.0], y=[100.0], electrons=[1e5], trail_x=[12.0], trail_y=[0.0]), psf, noise=1.0)
    assert trail.sum() == pytest.approx(star.sum(), rel=1e-3)
    x = np.arange(201) - 100.0
    moments = [(image.sum(0) * x * x).sum() / image.sum() for image in (star, trail)]
    assert moments[1] - moments[0] == pytest.approx(12.0**2 / 12, rel=0.02)  # steps of half a pixel


def test_cosmic_rays_come_at_their_rate():
    """The charge of many exposures is rate x length x charge a pixel, the last two being means of known
    laws."""
    shape, time_s = (256, 256), 300.0
    total = sum(draw_cosmic_rays(shape, time_s, generator(1, Stream.COSMIC_RAYS, visit)).sum() for visit in range(40))
    tracks = 2.0e-6 * shape[0] * shape[1] * time_s * 40
    mean = 7.0 * COSMIC_RAY_ELECTRONS * np.exp(0.5**2 / 2)
    # relative scatter of one track's charge is near 1; the border loses some of it, deposits round down
    assert total / (tracks * mean) == pytest.approx(0.96, abs=0.04 + 5 * 1.4 / np.sqrt(tracks))


def test_transients_begin_after_the_template_and_some_between_visits():
    """No transient shines before its onset; half of them have a host galaxy."""
    frame = Wcs.tan(150.0, 2.0, 0.0, 0.0, 0.2)
    epochs = 61000.0 + np.arange(4) / 144.0
    sky = make_sky(frame, [(0, 1024, 0, 1024), (1100, 2124, 0, 1024)], epochs, generator(1, Stream.SKY))
    transients = sky.transients
    assert (transient_flux(transients, epochs[0] - 5.0) == 0).all()
    assert (transient_flux(transients, epochs[-1]) > 0).all()
    assert 0 < np.count_nonzero(transient_flux(transients, epochs[0])) < len(transients["id"])
    assert abs(np.count_nonzero(transients["host"] >= 0) - len(transients["id"]) / 2) <= 1


def test_raw_files_hold_what_was_exposed(survey):
    """A raw file is 16 uint16 images of the camera's raw shape under a header that names visit and
    detector."""
    from astropy.io import fits

    visit = next(v for v in survey.visits if v.role == "science")
    with fits.open(survey.raw_path(visit, 0)) as hdus:
        assert len(hdus) == 17
        assert hdus[1].data.dtype == np.uint16
        assert hdus[1].shape == survey.camera.detectors[0].raw_shape[1:]
        assert (hdus[0].header["VISIT"], hdus[0].header["DETECTOR"]) == (visit.id, 0)


def sky_image(survey, visit):
    """Overscan- and response-corrected electrons of one science raw."""
    from astropy.io import fits

    detector = survey.camera.detectors[0]
    with fits.open(survey.raw_path(visit, 0)) as hdus:
        pixels = np.stack([hdus[str(amplifier.hdu)].data for amplifier in detector.amplifiers])
    optics = surveys.detector_optics(survey, 0)
    truth = make_detector_truth(detector, survey.seed, optics.vignetting(detector.shape))
    image = assemble(pixels, detector) - truth.dark * visit.dark_time_s
    return image / np.where(truth.dead, np.nan, truth.response), optics


def test_sky_level_is_that_of_its_magnitude(survey):
    """The median of a science frame is the sky brightness in electrons, but for the light of faint
    sources."""
    visit = next(v for v in survey.visits if v.role == "science")
    image, _ = sky_image(survey, visit)
    camera = survey.camera
    rate = 10.0 ** (0.4 * (camera.zero_points["r"] - visit.sky_magnitude)) * camera.pixel_scale_arcsec**2
    assert np.nanmedian(image) == pytest.approx(rate * 30.0, rel=0.01)


def centroid(weight):
    """First moments (x, y) of a stamp about its middle."""
    offset = np.arange(len(weight)) - len(weight) // 2
    return np.array([weight.sum(0) @ offset, weight.sum(1) @ offset]) / weight.sum()


def test_stars_lie_where_the_true_wcs_says_and_have_their_flux(survey):
    """Aperture flux and centroid of isolated stars at their true positions agree within the errors."""
    visit = next(v for v in survey.visits if v.role == "science")
    image, optics = sky_image(survey, visit)
    wcs = optics.wcs(visit.boresight, visit.rotation_deg, survey.camera.pixel_scale_arcsec)
    stars = read_table(survey.truth_path, "stars")
    x, y = wcs.pixel_from_sky(stars["ra"], stars["dec"])
    electrons = stars["flux_njy"] * surveys.electrons_per_njy(survey.camera, visit)
    psf = surveys.visit_psf(survey, visit, optics)
    pulls, shifts = [], []
    for row in np.flatnonzero((electrons > 4e4) & (electrons < 6e5)):
        near = np.hypot(x - x[row], y - y[row]) < 40
        inside = 20 < x[row] < 1003 and 20 < y[row] < 1003
        if not inside or electrons[near].sum() > 1.02 * electrons[row]:
            continue
        ix, iy, stamp = psf.stamp(x[row], y[row], 10)
        box = image[iy - 10 : iy + 11, ix - 10 : ix + 11]
        if not np.isfinite(box).all():
            continue
        frame = np.r_[box[0], box[-1], box[1:-1, 0], box[1:-1, -1]]
        net = box - np.median(frame)
        model = stamp - np.median(np.r_[stamp[0], stamp[-1], stamp[1:-1, 0], stamp[1:-1, -1]])
        flux, sigma = net.sum() / model.sum(), np.sqrt(box.sum()) / model.sum()
        pulls.append((flux - electrons[row]) / np.hypot(sigma, 0.01 * electrons[row]))
        shifts.append(centroid(net * stamp) - centroid(stamp * stamp))
    assert len(pulls) >= 10
    assert abs(np.median(pulls)) < 5 * 1.25 / np.sqrt(len(pulls)) + 0.3  # neighbours and galaxies add light
    assert np.abs(np.median(shifts, axis=0)).max() < 0.05  # pixels


def test_header_wcs_is_off_by_arcseconds(survey):
    """Registration is real: the header's WCS misses the truth by some arcseconds, not by none and not by
    many."""
    optics = surveys.detector_optics(survey, 0)
    for visit in (v for v in survey.visits if v.role == "science"):
        true = optics.wcs(visit.boresight, visit.rotation_deg, 0.2)
        told = optics.wcs(visit.header_boresight, visit.header_rotation_deg, 0.2)
        x, y = told.pixel_from_sky(*true.sky_from_pixel(500.0, 500.0))
        assert 0.1 < 0.2 * np.hypot(x - 500.0, y - 500.0) < 20.0


def test_changes_tell_what_a_difference_should_hold(survey):
    """Every visit has transients with S/N of their flux's sign, clean ones inside the border; the template
    has none."""
    changes = read_table(survey.truth_path, "changes")
    transients = changes["kind"] == "transient"
    assert set(changes["kind"]) == {"transient", "variable", "asteroid"}
    assert (changes["template_flux_njy"][transients] == 0).all()
    assert (np.sign(changes["snr"]) == np.sign(changes["difference_flux_njy"]))[changes["is_clean"]].all()
    assert (changes["snr"][transients] > 7).sum() >= 10
    edge = np.minimum(changes["x"], changes["y"])[changes["is_clean"]]
    assert edge.min() > 40


def test_catalogues_are_those_that_a_run_reads(survey):
    """The reference, the positions to force photometry at and the ephemerides go through the run's own readers."""
    stars, positions = read_reference(survey.reference_path), read_positions(survey.positions_path)
    assert len(stars["flux"]) > 50
    assert (stars["flux"] > 0).all()
    assert len(set(positions["dia_object_id"])) == len(positions["ra"])
    visit = next(visit for visit in survey.visits if visit.role == "science")
    ephemerides = read_ephemerides(survey.ephemerides_path)
    predicted = predictions_for(ephemerides, visit.id, visit.midpoint_mjd_tai, AssociateConfig())
    assert predicted["designation"].tolist() == ["SIM 0", "SIM 1"]


def test_too_many_detectors_are_refused(tmp_path):
    """Asking for more detectors than the camera has says how many there are."""
    with pytest.raises(ConfigError, match="got 9 detectors, wanted 1 to 4"):
        surveys.plan_survey(tmp_path, camera="simulator", n_detectors=9, seed=1, counts={})


def test_survey_is_the_same_whatever_the_number_of_processes(survey, tmp_path):
    """Two processes write the bytes that one wrote."""
    again = surveys.simulate_survey(
        tmp_path, n_detectors=1, n_bias=1, n_dark=0, n_flat=1, n_template_visits=1, n_science_visits=2, seed=11,
        workers=2,
    )  # fmt: skip
    for first, second in zip(survey.raws("science"), again.raws("science"), strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert read_table(survey.reference_path, "stars")["ra"].tolist() == read_table(again.reference_path, "stars")["ra"].tolist()


def test_camera_of_the_simulator_has_sixteen_amplifiers():
    """The simulated camera is Rubin-like: sixteen amplifiers of each detector tile it without overlap."""
    for detector in load_camera("simulator").detectors.values():
        covered = np.zeros(detector.shape, dtype=int)
        for amplifier in detector.amplifiers:
            covered[amplifier.detector.slices] += 1
        assert len(detector.amplifiers) == 16
        assert (covered == 1).all()


def separation_arcsec(first, second):
    """Small angle between two tables' ra, dec."""
    d_ra = (first["ra"] - second["ra"]) * np.cos(np.radians(first["dec"]))
    return 3600.0 * np.hypot(d_ra, first["dec"] - second["dec"])


def test_ephemerides_predict_the_known_asteroids_within_their_errors(survey):
    """Predictions of every science visit lie a few of their errors from the truth; their rates lead to the next visit."""
    predicted, truth = read_table(survey.ephemerides_path, "ephemerides"), read_table(survey.truth_path, "asteroids")
    science = [visit for visit in survey.visits if visit.role == "science"]
    assert sorted(set(predicted["visit"])) == [visit.id for visit in science]
    for visit in science:
        here = {name: values[predicted["visit"] == visit.id] for name, values in predicted.items()}
        rows = [truth["ss_object_id"].tolist().index(number) for number in here["ss_object_id"]]
        true = asteroid_positions({name: values[rows] for name, values in truth.items()}, visit.midpoint_mjd_tai)
        pull = separation_arcsec(here, true) / (3600.0 * here["ra_err"])
        assert (pull > 0).all() and (pull < 5).all()
    first, last = ({name: values[predicted["visit"] == v.id] for name, values in predicted.items()} for v in science)
    days = last["mjd"] - first["mjd"]
    moved = {"ra": first["ra"] + first["ra_rate"] * days, "dec": first["dec"] + first["dec_rate"] * days}
    np.testing.assert_array_less(separation_arcsec(moved, last), 1e-3)  # the cosine changes by 1e-5 over 30 arcsec


def test_some_asteroids_are_undiscovered(survey):
    """Asteroids without a number are in no ephemerides and in the truth all the same; the others are in both."""
    predicted, truth = read_table(survey.ephemerides_path, "ephemerides"), read_table(survey.truth_path, "asteroids")
    known = truth["ss_object_id"] > 0
    assert known.sum() >= 2 and (~known).sum() >= 1
    assert set(predicted["ss_object_id"]) == set(truth["ss_object_id"][known])
    changes = read_table(survey.truth_path, "changes")
    seen = set(changes["id"][changes["kind"] == "asteroid"])
    assert set(truth["id"][~known]) <= seen


def test_survey_without_science_visits_has_empty_ephemerides(tmp_path):
    """Nothing to predict is a file with columns and no rows."""
    plan = surveys.plan_survey(tmp_path, camera="simulator", n_detectors=1, seed=1, counts=dict.fromkeys(COUNTS, 0))
    write_ephemerides(plan.ephemerides_path, surveys.survey_sky(plan), plan.visits, generator(1, Stream.EPHEMERIDES))
    assert len(read_table(plan.ephemerides_path, "ephemerides")["ra"]) == 0


def test_what_does_not_move_stays_over_the_visits():
    """Variables and transients keep position and, between neighbouring visits, most of their flux: histories make sense."""
    frame, epochs = Wcs.tan(150.0, 2.0, 0.0, 0.0, 0.2), 61000.0 + np.arange(4) / 144.0
    sky = make_sky(frame, [(0, 1024, 0, 1024)], epochs, generator(3, Stream.SKY))
    before, after = (point_sources(sky, mjd) for mjd in (epochs[2], epochs[3]))
    for kind in ("variable", "transient"):
        rows = before["kind"] == kind
        assert rows.any()
        np.testing.assert_array_equal(before["ra"][rows], after["ra"][rows])
    shining = (before["kind"] == "transient") & (before["flux_njy"] > 0)
    kept = after["flux_njy"][shining] / before["flux_njy"][shining]
    assert (kept >= np.exp(-1 / 144.0 / 0.05)).all()  # the fastest decay takes 0.05 days
