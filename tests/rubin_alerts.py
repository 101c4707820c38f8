"""The 25 real Rubin alerts as the dicts they were before they went through Parquet."""

import math

from alert_records import fastavro_bytes
from realdata import real_data

from nightstream.io.alerts.avro_schema import record_fields
from nightstream.io.alerts.files import decode_body

VERSION = "10.0"


def rubin_alerts():
    """Return the alerts as Avro gives them; skip without the data.

    Parquet made integers with gaps into floats: they become integers again, and the identifiers, which lost digits by it,
    are taken from the DIASource, where they are whole. Times it left out are null.
    """
    return [decode_body(fastavro_bytes([alert_from(row)], "alert", VERSION)[0], VERSION) for row in parquet_rows()]


def parquet_rows():
    """Return the rows of the Parquet file."""
    from pyarrow import parquet

    return parquet.read_table(real_data("rubin_alerts") / "rubin_sample_data_10_0.parquet").to_pylist()


def alert_from(row):
    """Return one alert: its parts with the types of the schema, the identifiers repaired."""
    source = row["diaSource"]
    alert = {name: row[name] for name in ("diaSourceId", "observation_reason", "target_name")}
    alert["diaSource"] = part(source, "diaSource")
    alert["prvDiaSources"] = row["prvDiaSources"] and [part(entry, "diaSource") for entry in row["prvDiaSources"]]
    alert["prvDiaForcedSources"] = row["prvDiaForcedSources"]
    alert["diaObject"] = part(row["diaObject"], "diaObject", diaObjectId=source["diaObjectId"])
    ids = {"diaSourceId": source["diaSourceId"], "ssObjectId": source["ssObjectId"]}
    alert["ssSource"] = part(row["ssSource"], "ssSource", **ids)
    alert["mpc_orbits"] = part(row["mpc_orbits"], "mpc_orbits")
    return alert | {name: row[name] for name in ("cutoutDifference", "cutoutScience", "cutoutTemplate")}


def part(entry, record, **ids):
    """Return one record with every field of the schema, or None."""
    if entry is None:
        return None
    columns = [field.column for field in record_fields(record, VERSION)]
    return {column.apdb: value(entry.get(column.apdb), column.dtype) for column in columns} | ids


def value(parquet, dtype):
    """Return one value as it was before Parquet."""
    if parquet is None or (dtype.startswith("<i") and math.isnan(parquet)):
        return None
    return int(parquet) if dtype.startswith("<i") else parquet
