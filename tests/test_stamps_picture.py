"""Pictures of alerts: they show what the packet holds, at any size, also where something is missing."""

import numpy as np
import pytest
from alert_samples import fits_stamp, sample_alert
from matplotlib.image import imread
from rubin_alerts import rubin_alerts

from nightstream.report.stamps import choose_alerts, describe_alert, save_alert, save_alert_page


def alert(number, *, of=None, history=0, snr=10.0, moving=False, dipole=False):
    """A packet with as much as choosing and describing need."""
    source = {"diaObjectId": of or number, "snr": snr, "isDipole": dipole}
    return {
        "diaSourceId": number,
        "diaSource": source,
        "prvDiaSources": [{}] * history,
        "ssSource": {"ssObjectId": 1} if moving else None,
    }


def test_one_alert_is_one_strip(tmp_path):
    """A PNG, wide, with ink in the places of the stamps and of the light curve."""
    picture = imread(save_alert(sample_alert(), tmp_path / "a.png"))[..., :3]
    height, width = picture.shape[:2]
    assert width == 1320 and height < width / 3
    dark = picture.mean(axis=2) < 0.5
    stamps, curve = dark[:, : width // 2], dark[:, int(0.6 * width) :]
    assert stamps.sum() > 1000 and curve.sum() > 300


def test_a_page_grows_with_its_alerts(tmp_path):
    """Each alert has a row of its own; no alerts make an empty page, no error."""
    one = imread(save_alert_page([sample_alert()], tmp_path / "1.png"))
    three = imread(save_alert_page([sample_alert(seed, shape=30 + 36 * seed) for seed in range(3)], tmp_path / "3.png", "night"))
    assert three.shape[0] - one.shape[0] == pytest.approx(2 * 2.75 * 110, abs=2)
    assert save_alert_page([], tmp_path / "0.png").exists()


@pytest.mark.parametrize("missing", ["cutoutScience", "cutoutTemplate", "cutoutDifference"])
def test_a_missing_stamp_is_left_blank(tmp_path, missing):
    """The other stamps and the light curve are drawn."""
    assert save_alert(sample_alert() | {missing: None}, tmp_path / "a.png").exists()


def test_blank_and_flat_stamps_are_drawn(tmp_path):
    """Pixels off the image are NaN; a stamp of nothing but NaN, or of one value, is no error."""
    packet = sample_alert()
    image = np.full((31, 31), np.nan)
    packet["cutoutScience"] = fits_stamp(image, 150.1, -2.2)
    image[:, 10:] = 5.0
    packet["cutoutDifference"] = packet["cutoutTemplate"] = fits_stamp(image, 150.1, -2.2, with_mask=False)
    assert save_alert(packet, tmp_path / "a.png").exists()


def test_nothing_measured_is_drawn(tmp_path):
    """Neither history nor flux nor band: the picture is there."""
    packet = sample_alert() | {"prvDiaSources": None, "prvDiaForcedSources": None}
    packet["diaSource"] |= {"psfFlux": None, "psfFluxErr": None, "snr": None, "reliability": None, "band": None}
    assert save_alert(packet, tmp_path / "a.png").exists()
    assert describe_alert(packet)[1].startswith("S/N ?  ·  ? ± ? µJy")


def test_alerts_say_what_they_are():
    """Known asteroid, object with a history, or new."""
    assert "object 900, 6 detections in 13 days" in describe_alert(sample_alert())[0]
    moving = sample_alert(moving=True)
    assert "Solar System object 2001 SB97  ·" in describe_alert(moving)[0]
    followed = moving | {"prvDiaSources": sample_alert()["prvDiaSources"]}
    assert "Solar System object 2001 SB97, 6 detections in 13 days" in describe_alert(followed)[0]
    assert "new object" in describe_alert(sample_alert() | {"prvDiaSources": []})[0]
    assert (
        "S/N 90.0  ·  9.00 ± 0.10 µJy  ·  ra 150.10000°, dec -2.20000°  ·  reliability 0.97" == describe_alert(sample_alert())[1]
    )


def test_the_page_shows_each_object_once():
    """Of an object the alert with the longest history; the same of asteroids, last; nothing flagged; any order of alerts."""
    fixed = [alert(1, of=1), alert(2, of=1, history=3), alert(3, snr=90), alert(4, snr=-80), alert(5, snr=5, history=1)]
    alerts = [*fixed, alert(6, snr=200, moving=True), alert(7, snr=300, moving=True), alert(8, snr=999, dipole=True)]
    assert [one["diaSourceId"] for one in choose_alerts(alerts, 3)] == [2, 5, 7]
    assert [one["diaSourceId"] for one in choose_alerts(alerts[::-1], 3)] == [2, 5, 7]
    assert [one["diaSourceId"] for one in choose_alerts(alerts, 20)] == [2, 5, 3, 4, 7]
    followed = alert(9, snr=20, history=2, moving=True)
    assert [one["diaSourceId"] for one in choose_alerts([*alerts, followed], 3)] == [2, 5, 9]
    assert choose_alerts([], 4) == choose_alerts(alerts, 0) == []


def test_the_page_shows_bright_and_faint():
    """Of many objects with equal histories those come that are spread over the better part of their S/N."""
    alerts = [alert(number, snr=number, history=2) for number in range(1, 101)]
    chosen = [one["diaSourceId"] for one in choose_alerts(alerts, 4)]
    assert chosen[0] == 100 and chosen[-1] == 41
    assert np.ptp(np.diff(chosen)) <= 1


@pytest.mark.real
def test_rubins_alerts_can_be_drawn(tmp_path):
    """A page of the best of the 25 real alerts: those with a history come first."""
    chosen = choose_alerts(rubin_alerts(), 6)
    assert [len(packet["prvDiaSources"] or ()) for packet in chosen] == [22, 16, 2, 0, 0, 0]
    assert chosen[-1]["ssSource"]["designation"] == "K01S97B"
    assert save_alert_page(chosen, tmp_path / "page.png", "Rubin").exists()
