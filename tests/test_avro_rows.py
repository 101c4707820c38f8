"""Rows of tables become the Avro bytes that fastavro writes for the same records."""

import numpy as np
import pytest
from alert_records import fastavro_bytes, random_table, records_from

from nightstream.errors import InputError
from nightstream.io.alerts.avro_rows import RowEncoder, encode_rows, zigzag
from nightstream.io.alerts.avro_schema import RECORDS, VERSIONS


def split(rows):
    """Return the rows as a list of bytes."""
    return [rows.row(index) for index in range(len(rows.offsets) - 1)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("record", RECORDS)
def test_bytes_are_those_of_fastavro(record, version):
    """Random values of every type, a third of them NULL, in every record and version."""
    table = random_table(record, 40, seed=len(record), version=version)
    assert split(encode_rows(table, record, version)) == fastavro_bytes(records_from(table, record, version), record, version)


@pytest.mark.parametrize("record", RECORDS)
def test_masked_columns_say_what_is_null(record):
    """In a masked array zeros, NaN and empty text are values, and the masked ones are null."""
    rng = np.random.default_rng(1)
    required = {column.name for column in RECORDS[record].columns if column.required}
    table = {
        name: values if name in required else np.ma.MaskedArray(np.zeros_like(values), rng.random(30) < 0.5)
        for name, values in random_table(record, 30).items()
    }
    assert split(encode_rows(table, record)) == fastavro_bytes(records_from(table, record), record)


def test_nan_that_is_not_masked_is_a_value():
    """A masked array may hold NaN as a value."""
    table = random_table("diaForcedSource", 2)
    table["psf_flux"] = np.ma.MaskedArray(np.array([np.nan, np.nan], np.float32), [False, True])
    first, second = split(encode_rows(table, "diaForcedSource"))
    assert b"\x02" + np.float32(np.nan).tobytes() in first and np.float32(np.nan).tobytes() not in second


def test_missing_columns_are_null_or_zero_counts():
    """What a table lacks is null; a count that may not be null is 0; positions and numbers must be there."""
    required = ("dia_source_id", "visit", "detector", "midpoint_mjd_tai", "ra", "dec", "x", "y", "time_processed_mjd_tai")
    full = random_table("diaSource", 5)
    table = {name: full[name] for name in required}
    assert split(encode_rows(table, "diaSource")) == fastavro_bytes(records_from(table, "diaSource"), "diaSource")
    del table["ra"], table["visit"]
    with pytest.raises(InputError, match="diaSource wants the columns visit, ra"):
        encode_rows(table, "diaSource")


@pytest.mark.parametrize("n_rows", [0, 1, 2047, 2048, 5000])
def test_any_number_of_rows(n_rows):
    """Rows are laid out in chunks; their number does not show."""
    table = random_table("diaForcedSource", n_rows)
    rows = encode_rows(table, "diaForcedSource")
    assert rows.offsets[0] == 0 and rows.offsets[-1] == rows.buffer.size and len(rows.offsets) == n_rows + 1
    one = encode_rows({name: values[-1:] for name, values in table.items()}, "diaForcedSource")
    assert split(rows)[-1:] == split(one)


def test_no_table_has_no_rows():
    """An empty dict is a table of no rows."""
    rows = encode_rows({}, "diaObject")
    assert rows.offsets.tolist() == [0] and rows.buffer.size == 0


def test_rows_in_any_order():
    """An encoder gives the rows it is asked for, also twice."""
    table = random_table("diaObject", 20)
    every, order = split(encode_rows(table, "diaObject")), np.array([7, 3, 3, 19])
    assert split(RowEncoder(table, "diaObject").encode(order)) == [every[index] for index in order]


def test_wider_and_other_columns():
    """Values are cast to the column's type; columns the record does not have are ignored; bytes are text."""
    table = random_table("diaForcedSource", 8)
    wide = table | {"psf_flux": table["psf_flux"].astype(float), "detector": table["detector"].astype(np.int64)}
    wide |= {"x": np.ones(8), "band": np.char.encode(table["band"], "utf-8")}
    assert split(encode_rows(wide, "diaForcedSource")) == split(encode_rows(table, "diaForcedSource"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"detector": np.full(3, 70000)}, "detector holds values that int16 cannot"),
        ({"visit": np.ones(3)}, "visit wants int64, got float64"),
        ({"ra": np.ma.MaskedArray(np.ones(3), [0, 1, 0])}, "column ra holds masked values, but may not be null"),
        ({"band": np.array(["g"])}, r"columns of diaForcedSource must have one length, got \[1, 3\]"),
    ],
)
def test_impossible_values_are_refused(change, message):
    """What does not fit is an error, not silent loss."""
    with pytest.raises(InputError, match=message):
        encode_rows(random_table("diaForcedSource", 3) | change, "diaForcedSource")


@pytest.mark.parametrize(
    "value, written", [(0, "00"), (-1, "01"), (1, "02"), (-64, "7f"), (64, "8001"), (2**62, "80" * 8 + "8001")]
)
def test_integers(value, written):
    """Integers are written as the Avro specification's examples say."""
    assert zigzag(value).hex() == written
