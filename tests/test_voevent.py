"""VOEvent: the structure that the standard asks for, UTC times, units and UCDs."""

from xml.etree import ElementTree

import numpy as np
import pytest
from alert_samples import MJD, sample_alert
from astropy.time import Time
from rubin_alerts import rubin_alerts

from nightstream.io.alerts.voevent import NAMESPACE, ivorn, utc_iso, voevent
from nightstream.io.apdb import DIA_SOURCE

# Elements of VOEvent 2.0, and what each may hold, in the order of the standard's text.
CHILDREN = {
    "VOEvent": ["Who", "What", "WhereWhen", "How", "Why", "Citations", "Description", "Reference"],
    "Who": ["AuthorIVORN", "Date", "Description", "Reference", "Author"],
    "Author": ["title", "shortName", "logoURL", "contactName", "contactEmail", "contactPhone", "contributor"],
    "What": ["Group"],
    "Group": ["Param"],
    "Param": ["Description", "Reference", "Value"],
    "WhereWhen": ["ObsDataLocation"],
    "ObsDataLocation": ["ObservatoryLocation", "ObservationLocation"],
    "ObservatoryLocation": ["AstroCoordSystem", "AstroCoords"],
    "ObservationLocation": ["AstroCoordSystem", "AstroCoords"],
    "AstroCoords": ["Time", "Position2D"],
    "Time": ["TimeInstant", "Error"],
    "TimeInstant": ["ISOTime"],
    "Position2D": ["Name1", "Name2", "Value2", "Error2Radius"],
    "Value2": ["C1", "C2"],
    "Why": ["Name", "Concept", "Description", "Inference", "Reference"],
    "Inference": ["Name", "Concept", "Description", "Reference"],
    "Citations": ["EventIVORN", "Description"],
}


def parsed(packet, **options):
    return ElementTree.fromstring(voevent(packet, **options))


def params(event, group):
    return {param.get("name"): param for param in event.findall(f"What/Group[@name='{group}']/Param")}


def check_structure(element, name="VOEvent"):
    """Only elements that the standard knows, in its order."""
    names = [child.tag for child in element]
    order = CHILDREN.get(name, [])
    assert set(names) <= set(order), f"{name} holds {names}"
    assert names == sorted(names, key=order.index)
    for child in element:
        check_structure(child, child.tag)


@pytest.mark.parametrize("moving", [False, True])
def test_structure_is_the_standards(moving):
    """Root in the namespace, children without one; version, role, IVORN; every element where it may be."""
    packet = sample_alert(moving=moving)
    event = parsed(packet, stream="example.org/survey", is_test=True)
    assert event.tag == f"{{{NAMESPACE}}}VOEvent"
    assert (event.get("version"), event.get("role")) == ("2.0", "test")
    assert event.get("ivorn") == "ivo://example.org/survey#1234567890123"
    assert event.find("Who/AuthorIVORN").text == "ivo://example.org/survey"
    check_structure(event)


def test_place_and_time():
    """ICRS degrees with the error's radius, and the middle of the exposure in UTC, as astropy has it."""
    event = parsed(sample_alert(), observatory="Rubin")
    coords = event.find("WhereWhen/ObsDataLocation/ObservationLocation/AstroCoords")
    assert coords.get("coord_system_id") == "UTC-ICRS-TOPO"
    assert event.find("WhereWhen/ObsDataLocation/ObservatoryLocation").get("id") == "Rubin"
    assert float(coords.find("Position2D/Value2/C1").text) == 150.1
    assert float(coords.find("Position2D/Value2/C2").text) == -2.2
    assert float(coords.find("Position2D/Error2Radius").text) == pytest.approx(5e-5)
    assert coords.find("Time/TimeInstant/ISOTime").text == Time(MJD, format="mjd", scale="tai").utc.isot


@pytest.mark.parametrize(
    "utc", ["2016-12-31T23:59:59.500", "2017-01-01T00:00:00.500", "1999-06-01T12:00:00.123", "2026-11-22T00:00:36"]
)
def test_leap_seconds(utc):
    """Both sides of a leap second, and any other time, come back from TAI to the millisecond."""
    assert utc_iso(Time(utc, scale="utc").tai.mjd) == Time(utc, scale="utc").isot


def test_parameters_have_units_and_ucds():
    """What was measured is there with the schema's unit, UCD and type; what was not is absent."""
    found = params(parsed(sample_alert()), "diaSource")
    flux = found["psfFlux"]
    assert (float(flux.get("value")), flux.get("unit"), flux.get("ucd"), flux.get("dataType")) == (
        9000.0,
        "nJy",
        "phot.count",
        "float",
    )
    assert (found["isDipole"].get("value"), found["isDipole"].get("dataType")) == ("false", "string")
    assert (found["detector"].get("value"), found["detector"].get("dataType")) == ("7", "int")
    assert flux.find("Description").text == DIA_SOURCE.by_apdb["psfFlux"].description
    assert "trailLength" not in found  # NaN
    assert "ssObjectId" not in found  # None
    assert params(parsed(sample_alert()), "diaObject")["nDiaSources"].get("value") == "6"


def test_numbers_keep_all_digits():
    """Ids of 64 bits and fluxes come back exactly."""
    packet = sample_alert()
    packet["diaSource"] |= {"diaSourceId": 2**62 + 1, "psfFlux": float(np.float32(1234.5678))}
    found = params(parsed(packet), "diaSource")
    assert int(found["diaSourceId"].get("value")) == 2**62 + 1
    assert np.float32(found["psfFlux"].get("value")) == np.float32(1234.5678)


def test_importance_is_the_reliability():
    """A broker can cut on it; without reliability there is no Why."""
    packet = sample_alert()
    assert float(parsed(packet).find("Why").get("importance")) == 0.97
    packet["diaSource"]["reliability"] = None
    assert parsed(packet).find("Why") is None


def test_a_known_asteroid_is_named():
    """The designation of the Solar System object is an inference, its columns are a group."""
    event = parsed(sample_alert(moving=True))
    assert event.find("Why/Inference/Name").text == "2001 SB97"
    assert params(event, "ssSource")["ssObjectId"].get("value") == "42"
    assert params(event, "diaObject") == {}


def test_the_latest_earlier_alert_is_cited():
    """Events of one object form a chain; the first cites nothing."""
    packet = sample_alert()
    cited = parsed(packet).findall("Citations/EventIVORN")
    assert [(one.text, one.get("cite")) for one in cited] == [(ivorn("nightstream/alerts", 105), "followup")]
    packet["prvDiaSources"] = None
    assert parsed(packet).find("Citations") is None


@pytest.mark.real
def test_rubins_alerts_become_events():
    """All 25 real alerts make valid documents that say where and when."""
    for packet in rubin_alerts():
        event = parsed(packet, observatory="Rubin")
        check_structure(event)
        assert params(event, "diaSource")["band"].get("value") == "i"
        assert (
            event.find("WhereWhen/ObsDataLocation/ObservationLocation/AstroCoords/Time/TimeInstant/ISOTime").text[:10]
            == "2026-01-01"
        )
