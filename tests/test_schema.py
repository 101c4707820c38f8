"""Catalogue columns have the APDB's names, types and units, and survive the way to a file and back."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from nightstream.errors import InputError
from nightstream.io import apdb
from nightstream.io.apdb import DIA_OBJECT, DIA_SOURCE, MPC_ORBITS, STAR
from nightstream.io.schema import from_structured, parse_columns, snake_case, to_structured

SCHEMAS = {name: getattr(apdb, name) for name in apdb.__all__}
KINDS = {
    "long": "<i8",
    "short": "<i2",
    "int": "<i4",
    "float": "<f4",
    "double": "<f8",
    "boolean": "|b1",
    "timestamp": "<M8[us]",
}


def apdb_columns(name):
    """Return what the Rubin package says about the columns of table ``name``; skip without it."""
    if find_spec("lsst") is None or find_spec("lsst.sdm.schemas") is None:
        pytest.skip("lsst-sdm-schemas is not installed")
    text = (Path(find_spec("lsst.sdm.schemas").submodule_search_locations[0]) / "apdb.yaml").read_text()
    return next(table["columns"] for table in yaml.safe_load(text)["tables"] if table["name"] == name)


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in ("ALERT", "STAR")])
def test_columns_are_those_of_the_apdb(name):
    """Every official column has its name, type, nullability, unit, UCD and place; text is at least as long; ours follow."""
    schema = SCHEMAS[name]
    ours = {column.apdb: column for column in schema.columns if not column.optional}
    official = apdb_columns(schema.name)
    if name == "DETECTOR_VISIT_PROCESSING_SUMMARY":  # we measure only some of it
        official = [column for column in official if column["name"] in ours]
    assert list(ours) == [column["name"] for column in official]
    assert [column.optional for column in schema.columns] == sorted(column.optional for column in schema.columns)
    for theirs in official:
        check_column(ours[theirs["name"]], theirs)


def check_column(column, theirs):
    """Compare one of our columns with the dictionary that describes Rubin's."""
    dtype = np.dtype(column.dtype)
    if theirs["datatype"] in KINDS:
        assert dtype.str == KINDS[theirs["datatype"]], column.apdb
    else:
        assert dtype.kind == "S" and dtype.itemsize >= theirs.get("length", 1), column.apdb
    assert column.required == (theirs.get("nullable") is False), column.apdb
    assert column.unit == (theirs.get("fits:tunit") or theirs.get("ivoa:unit") or ""), column.apdb
    assert column.ucd == theirs.get("ivoa:ucd", ""), column.apdb


@pytest.mark.parametrize("name", SCHEMAS)
def test_names_are_unique_and_explained(name):
    """No two columns share a name in either spelling, and each has a meaning."""
    schema = SCHEMAS[name]
    assert len(schema.by_name) == len(schema.by_apdb) == len(schema.columns)
    assert all(column.description for column in schema.columns)


def test_band_columns():
    """A block of lines that begin with a star is repeated for every band; the other blocks are not."""
    columns = parse_columns("a l! - - the a\n\n*_b f deg**2 - the * b\n*_c t5 - - c\n\nd m - - when")
    assert [c.apdb for c in columns] == ["a", *(f"{band}_{x}" for band in "ugrizy" for x in "bc"), "d"]
    assert columns[3].unit == "deg**2" and columns[3].description == "the g b"
    assert [c.dtype for c in columns[::13]] == ["<i8", "<M8[us]"] and columns[2].dtype == "S5"
    assert columns[0].required and not columns[1].required


def test_times_and_bands_have_their_place():
    """Orbits keep their times of change; an object has every band's mean flux."""
    rows = to_structured({"created_at": np.array(["2026-01-02T03:04:05.000006"], "M8[us]")}, MPC_ORBITS)
    assert np.isnat(rows["updated_at"][0])
    assert from_structured(rows, MPC_ORBITS)["created_at"][0] == rows["created_at"][0]
    assert {f"{band}_psf_flux_mean" for band in "ugrizy"} < set(DIA_OBJECT.by_name)


@pytest.mark.parametrize(
    "apdb, name",
    [
        ("diaSourceId", "dia_source_id"),
        ("midpointMjdTai", "midpoint_mjd_tai"),
        ("psfFlux_flag_edge", "psf_flux_flag_edge"),
        ("pixelFlags_crCenter", "pixel_flags_cr_center"),
        ("pixelFlags_saturated_templateCenter", "pixel_flags_saturated_template_center"),
        ("ra_dec_Cov", "ra_dec_cov"),
        ("ixxPSF", "ixx_psf"),
        ("psfNdata", "psf_ndata"),
    ],
)
def test_python_names(apdb, name):
    """Python names are the APDB's in snake case."""
    assert snake_case(apdb) == name


def make_table():
    """Return three sources with some columns of every type."""
    return {
        "dia_source_id": np.array([1, 2, 2**60], np.int64),
        "detector": np.array([7, 7, 7], np.int16),
        "ra": np.array([1.0, 2.0, 1 / 3]),
        "psf_flux": np.array([10.5, np.nan, -3.25], np.float32),
        "is_dipole": np.array([True, False, True]),
        "band": np.array(["g", "r", "z-long"]),
        "star_residual": np.array([False, True, False]),
    }


def test_round_trip_is_exact():
    """A table comes back with the values, types and columns it had."""
    rows = to_structured(make_table(), DIA_SOURCE)
    back = from_structured(rows, DIA_SOURCE, tuple(make_table()))
    for name, values in make_table().items():
        np.testing.assert_array_equal(back[name], values)
        assert back[name].dtype == values.dtype
        assert back[name].flags.c_contiguous


def test_missing_columns_are_null():
    """What was not measured is NaN, 0, False or empty; our own columns are left out."""
    rows = to_structured({"ra": np.array([1.0])}, DIA_SOURCE)
    assert np.isnan(rows["psfFlux"][0]) and rows["ssObjectId"][0] == 0
    assert not rows["isDipole"][0] and rows["band"][0] == b""
    assert "starResidual" not in rows.dtype.names and len(rows.dtype.names) == 103


def test_masked_values_are_null():
    """What a masked array hides is written as null, whatever lies under the mask."""
    mask = [False, True]
    table = {
        "ra": np.ma.MaskedArray([1.0, 2.0], mask),
        "psf_flux": np.ma.MaskedArray([1.0, 2.0], mask),
        "ss_object_id": np.ma.MaskedArray([3, 4], mask),
        "band": np.ma.MaskedArray(["g", "r"], mask),
    }
    rows = to_structured(table, DIA_SOURCE)
    assert np.isnan(rows["ra"][1]) and np.isnan(rows["psfFlux"][1]) and rows["ra"][0] == 1
    assert rows["ssObjectId"].tolist() == [3, 0] and rows["band"].tolist() == [b"g", b""]


def test_empty_tables():
    """No columns, or columns of no rows, are tables of no rows."""
    assert len(to_structured({}, DIA_SOURCE)) == 0
    rows = to_structured({"band": np.array([], "U1"), "x": np.zeros(0)}, DIA_SOURCE)
    back = from_structured(rows, DIA_SOURCE)
    assert len(back) == 103 and all(len(values) == 0 for values in back.values())


@pytest.mark.parametrize(
    "table, message",
    [
        ({"flux": np.zeros(2)}, "DiaSource has no column flux"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, r"one length, got \[2, 3\]"),
        ({"visit": np.array([1.5])}, "visit wants int64, got float64"),
        ({"detector": np.array([70000])}, "detector holds values that int16 cannot"),
        ({"is_dipole": np.array([2])}, "isDipole holds values that bool cannot"),
        ({"band": np.array(["much too long a name"])}, "band holds text of more than 16 bytes"),
    ],
)
def test_wrong_tables_are_refused(table, message):
    """Unknown columns and impossible values are errors, not silent loss."""
    with pytest.raises(InputError, match=message):
        to_structured(table, DIA_SOURCE)


def test_unknown_column_of_a_file_is_refused():
    """A file with a column the schema does not know says so."""
    with pytest.raises(InputError, match="Source has no column strange"):
        from_structured(np.zeros(2, [("strange", "<f4")]), STAR)
