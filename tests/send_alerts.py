"""A publisher's visit, and a sender in a process of its own that can be killed."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
from fake_outbox import body
from prompt_tables import alerts, detector_visits

from nightstream.io.alerts.distribution import AlertSink, FileSink
from nightstream.io.alerts.files import write_alert_file
from nightstream.io.alerts.kafka_sink import KafkaSink
from nightstream.io.database.prompt_database import PromptDatabase, VisitBatch, open_database
from nightstream.scheduler.sender import Sender

PROCESSES = multiprocessing.get_context("forkserver")  # which imports what takes long once
PROCESSES.set_forkserver_preload(
    ["nightstream.io.database.prompt_database", "nightstream.io.alerts.kafka_sink", "duckdb", "pyarrow", "confluent_kafka"]
)
SLOWLY = {"linger.ms": 0, "batch.num.messages": 10, "max.in.flight.requests.per.connection": 1}


def publish_visit(database: PromptDatabase, spool_dir: Path, visit: int, ids: np.ndarray) -> Path:
    """What the publisher does at the end of a visit: a spool file, then a transaction."""
    path = spool_dir / f"visit={visit}.avro"
    places = write_alert_file(path, [body(int(i)) for i in ids], "11.1", ids=ids)
    rows = alerts(ids, ids, visit, file=path.name) | places._asdict()
    database.write(VisitBatch(visit=visit, detector_visits=detector_visits(visit), alerts=rows, alert_file=path.name))
    return path


def run_sender(database: Path, spool_dir: Path, *sink: str, kill_after_s: float | None) -> bool:
    """Run a sender's process; kill it so long after it opened the database. True if it emptied the outbox before that.

    ``sink`` is "files", folder or "kafka", address, topic.
    """
    ours, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=send, args=(its, database, spool_dir, sink))
    process.start()
    its.close()
    assert ours.recv() == "open"
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    process.join()
    try:
        return ours.recv() == "empty"
    except EOFError:
        return False
    finally:
        ours.close()
        process.close()


def send(told, database: Path, spool_dir: Path, sink: tuple[str, ...]) -> None:
    """The process: send until the outbox is empty."""
    with open_database(database) as outbox:
        told.send("open")
        sender = Sender(outbox, make(*sink), spool_dir, retry_s=0.05).start()
        if sender.drain(60.0):
            told.send("empty")
        sender.close()


def make(kind: str, *where: str) -> AlertSink:
    """The sink; a slow one to Kafka, so that there is something to kill."""
    if kind == "files":
        return FileSink(*where)
    address, topic = where
    return KafkaSink(topic, {"bootstrap.servers": address, **SLOWLY}, settle_s=0.1)


def sent_of(database: Path) -> tuple[list[int], int]:
    """diaSourceIds of the alerts that are booked as sent, sorted, and how many files wait."""
    with open_database(database) as opened, opened._store.transaction() as session:
        ids = session.fetch('SELECT "diaSourceId" FROM "Alert" WHERE "sentMjdTai" IS NOT NULL ORDER BY 1', ["i8"])[0]
        return ids.tolist(), session.fetch('SELECT count(*) FROM "AlertFile" WHERE NOT "isSent"', ["i8"])[0][0]
