"""Catalogue columns have the APDB's names, types and units, and survive the way to a file and back."""

import gzip

import numpy as np
import pytest
import yaml
from realdata import real_data

from nightstream.errors import InputError
from nightstream.io.schema import (
    DIA_FORCED_SOURCE,
    DIA_SOURCE,
    STAR,
    from_structured,
    snake_case,
    to_structured,
)

KINDS = {"long": "<i8", "short": "<i2", "int": "<i4", "float": "<f4", "double": "<f8", "boolean": "|b1"}


@pytest.mark.real
@pytest.mark.parametrize("schema", [DIA_SOURCE, DIA_FORCED_SOURCE])
def test_columns_are_those_of_the_apdb(schema):
    """Every official column is here, in order, with its name, type, unit and UCD; ours come after."""
    text = gzip.open(real_data("lsst_raw_format") / "schemas" / "apdb.yaml.gz").read()
    table = next(table for table in yaml.safe_load(text)["tables"] if table["name"] == schema.name)
    official = [
        (c["name"], KINDS.get(c["datatype"], "|S16"), c.get("fits:tunit") or "", c.get("ivoa:ucd", "")) for c in table["columns"]
    ]
    ours = [(c.apdb, np.dtype(c.dtype).str, c.unit, c.ucd) for c in schema.columns if not c.optional]
    assert ours == official


@pytest.mark.parametrize("schema", [DIA_SOURCE, DIA_FORCED_SOURCE, STAR])
def test_names_are_unique_and_explained(schema):
    """No two columns share a name in either spelling, and each has a meaning."""
    assert len(schema.by_name) == len(schema.by_apdb) == len(schema.columns)
    assert all(column.description for column in schema.columns)


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
