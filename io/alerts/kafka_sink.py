"""Alerts to Kafka, each exactly once as far as Kafka lets a producer promise it: see `docs/kafka.md`.

Within one producer the broker drops repeated batches (idempotence). Across producers, so after a crash or a time-out,
the topic itself tells what has arrived: its end is saved before the first alert of a consignment is sent, and from there it
is read back.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nightstream.errors import ConfigError, DeliveryError, FileError
from nightstream.io.alerts.avro_schema import alert_schema, schema_id
from nightstream.io.alerts.distribution import Consignment, Ledger, read_progress
from nightstream.io.alerts.files import read_body, wire_message
from nightstream.io.alerts.kafka_topic import ClientLog, Mark, end_of, messages_since
from nightstream.io.alerts.schema_registry import register_schema
from nightstream.io.clock import mjd_tai, now_mjd_tai

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

logger = logging.getLogger(__name__)

POLL_S = 0.05  # s; longest wait for the broker before looking whether to stop
BOOK_EVERY_S = 0.25  # s; acknowledged alerts are booked together
DEFAULTS = {
    "acks": "all",
    "enable.idempotence": True,
    "batch.size": 2 * 1024 * 1024,
    "linger.ms": 5,
    "compression.type": "snappy",
    "message.max.bytes": 4 * 1024 * 1024,
    "queue.buffering.max.kbytes": 256 * 1024,  # of memory for alerts under way
    "message.timeout.ms": 300_000,  # then the producer is given up, the topic read back, and the rest sent again
    "log.connection.close": False,
}
FIXED = {"acks": ("all", "-1"), "enable.idempotence": ("true",)}  # what the promise rests on
TOO_LARGE = ("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE")
REFUSED = (*TOO_LARGE, "INVALID_RECORD", "INVALID_MSG", "INVALID_TIMESTAMP", "_INVALID_ARG", "_BAD_MSG")  # this alert's own fault


class Refusal(NamedTuple):
    """An alert that the broker, or the library in front of it, did not take."""

    row: int
    reason: str


@dataclass(slots=True)
class _Attempt:
    """What became of the alerts handed to the producer in one `deliver`: filled by its delivery callback."""

    ids: np.ndarray
    ledger: Ledger
    open: int = 0  # handed over, fate unknown
    acknowledged: list[int] = field(default_factory=list)  # rows, not booked yet
    times: list[float] = field(default_factory=list)  # their MJD TAI
    refused: list[Refusal] = field(default_factory=list)
    lost: str = ""  # why the fate of some alert can no longer be learnt from the producer
    booked_s: float = 0.0

    def hear(self, row: int, error: KafkaError | None) -> None:
        """Take the fate of one alert."""
        self.open -= 1
        if error is None:
            self.acknowledged.append(row)
            self.times.append(now_mjd_tai())
        elif error.name() in REFUSED:
            self.refused.append(Refusal(row, error.str()))
        else:
            self.lost = error.str()

    def book(self, *, at_once: bool = False) -> None:
        """Book what is acknowledged, at most every `BOOK_EVERY_S`."""
        if self.acknowledged and (at_once or time.monotonic() - self.booked_s > BOOK_EVERY_S):
            rows, times = self.acknowledged, np.array(self.times)
            self.acknowledged, self.times = [], []
            self.ledger.sent(self.ids[rows], times)
            self.booked_s = time.monotonic()


class KafkaSink:
    """Sends every alert as one message: key diaSourceId (decimal text), value Confluent's wire form of the packet.

    ``settings`` are librdkafka's, laid over `DEFAULTS`. With a ``registry_url`` the schema of an alert's version
    (``schema_of``) is registered under ``subjects`` before the first message, and the registry's id goes into the messages,
    else `nightstream.io.alerts.avro_schema.schema_id`. ``settle_s``: how long the topic must have been quiet at its end, after a
    crash, until nothing of the dead producer can still arrive. Raises ConfigError for settings that librdkafka does not know.
    """

    def __init__(
        self,
        topic: str,
        settings: Mapping[str, str | int | float | bool],
        *,
        registry_url: str = "",
        subjects: Sequence[str] = ("alert-packet",),
        settle_s: float = 2.0,
        schema_of: Callable[[str], dict] = alert_schema,
    ) -> None:
        check_settings(settings)
        self.topic = topic
        self._settings = DEFAULTS | dict(settings)
        self._schema_of = schema_of
        self._registry_url = registry_url
        self._subjects = tuple(subjects)
        self._settle_s = settle_s
        self._schema_ids: dict[str, int] = {}
        self._certain: set[str] = set()  # consignments of which nothing is under way, known without reading back
        self._trouble: Callable[[str], None] = logger.warning
        self._producer: Producer | None = _producer(self._settings, self._hear_trouble)  # connects meanwhile; waits for nothing

    def deliver(self, consignment: Consignment, ledger: Ledger) -> None:
        """See `AlertSink.deliver`. In file order; an alert that is refused is tried once more alone, then booked as failed."""
        self._trouble = ledger.trouble
        number = self._schema_id(consignment.schema_version)
        producer = self._connected()
        todo = self._not_yet_there(consignment, ledger)
        self._certain.discard(consignment.path.name)
        attempt = _Attempt(np.asarray(consignment.alerts["dia_source_id"]), ledger)
        unreadable: list[FileError] = []
        for row, value in _messages(consignment, todo, number, unreadable):
            self._hand_over(producer, attempt, row, value)
            if attempt.lost or ledger.is_stopping:
                break
        if not self._wait(producer, attempt):
            return
        self._try_alone(producer, consignment, attempt, number)
        self._certain.add(consignment.path.name)
        if unreadable:
            raise unreadable[0]

    def close(self) -> None:
        """Drop the producer and what it still holds; the topic tells later what of that arrived."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None
        self._certain.clear()

    def _schema_id(self, version: str) -> int:
        if not self._registry_url:
            return schema_id(version)
        if version not in self._schema_ids:
            schema = json.dumps(self._schema_of(version))
            self._schema_ids[version] = register_schema(self._registry_url, self._subjects, schema)
        return self._schema_ids[version]

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = _producer(self._settings, self._hear_trouble)
        return self._producer

    def _hear_trouble(self, error: KafkaError) -> None:
        """librdkafka's error callback: everything but fatal errors is information, it tries again by itself."""
        self._trouble(error.str())

    def _not_yet_there(self, consignment: Consignment, ledger: Ledger) -> np.ndarray:
        """Rows of alerts that are not on the topic; what is there already is booked."""
        ids = np.asarray(consignment.alerts["dia_source_id"])
        if consignment.path.name in self._certain:
            return np.arange(len(ids))
        mark = Mark.read(read_progress(consignment.progress))
        if mark is None:
            self._save_end(ledger)
            return np.arange(len(ids))
        there = _arrived(messages_since(mark, self._settings, settle_s=self._settle_s, is_stopping=lambda: ledger.is_stopping))
        arrived = np.array([int(dia_source_id) in there for dia_source_id in ids], dtype=bool)
        if arrived.any():
            times = mjd_tai(np.array([there[int(dia_source_id)] for dia_source_id in ids[arrived]]))
            ledger.sent(ids[arrived], times)
        if mark.topic != self.topic:  # the configuration changed in between: the rest goes to the new topic
            self._save_end(ledger)
        return np.flatnonzero(~arrived)

    def _save_end(self, ledger: Ledger) -> None:
        end = end_of(self.topic, self._settings, is_stopping=lambda: ledger.is_stopping)
        ledger.save_progress(json.dumps(end.record()))

    def _hand_over(self, producer: Producer, attempt: _Attempt, row: int, value: bytes) -> None:
        """Queue one alert; wait while the queue is full."""
        from confluent_kafka import KafkaException

        key = str(int(attempt.ids[row])).encode()
        while not (attempt.lost or attempt.ledger.is_stopping):
            try:
                producer.produce(self.topic, value=value, key=key, on_delivery=_listener(attempt, row))
            except BufferError:
                producer.poll(POLL_S)
                attempt.book()
                continue
            except KafkaException as error:
                self._refuse_at_once(attempt, row, error.args[0])
                return
            attempt.open += 1
            producer.poll(0)
            attempt.book()
            return

    def _refuse_at_once(self, attempt: _Attempt, row: int, error: KafkaError) -> None:
        if error.name() in REFUSED:
            attempt.ledger.failed(attempt.ids[[row]], error.str())
        else:
            attempt.lost = error.str()

    def _wait(self, producer: Producer, attempt: _Attempt) -> bool:
        """Wait for the fate of all that was handed over; False if the ledger wants to stop before that.

        Raises DeliveryError, without the producer, if some fate can no longer be learnt from it.
        """
        while attempt.open and not (attempt.lost or attempt.ledger.is_stopping):
            producer.poll(POLL_S)
            attempt.book()
        attempt.book(at_once=True)
        if attempt.lost:
            self.close()
            raise DeliveryError(f"the broker did not take the alerts: {attempt.lost}", path=self.topic)
        return attempt.open == 0 and not attempt.ledger.is_stopping

    def _try_alone(self, producer: Producer, consignment: Consignment, attempt: _Attempt, number: int) -> None:
        """Send each refused alert by itself, since brokers refuse a whole batch for its size or for one bad record in it."""
        again, attempt.refused = attempt.refused, []
        for refusal in again:
            for row, value in _messages(consignment, [refusal.row], number, []):
                self._hand_over(producer, attempt, row, value)
            if not self._wait(producer, attempt):
                return
        for refusal in attempt.refused:
            attempt.ledger.failed(attempt.ids[[refusal.row]], refusal.reason)


def check_settings(settings: Mapping[str, object]) -> None:
    """Raise ConfigError if librdkafka ``settings`` take away what exactly-once rests on, or name no broker."""
    if not settings.get("bootstrap.servers"):
        raise ConfigError("kafka settings lack bootstrap.servers")
    if "transactional.id" in settings:
        raise ConfigError("kafka setting transactional.id is not supported: consumers would have to read committed messages only")
    for key, wanted in FIXED.items():
        got = str(settings.get(key, wanted[0])).lower()
        if got not in wanted:
            raise ConfigError(f"got kafka setting {key} {got}, wanted {wanted[0]}: nothing less loses and doubles no alert")


def _producer(settings: Mapping[str, object], on_error: Callable) -> Producer:
    from confluent_kafka import KafkaException, Producer

    try:
        return Producer(dict(settings) | {"error_cb": on_error}, logger=ClientLog)
    except KafkaException as error:
        raise ConfigError(f"kafka settings: {error.args[0].str()}") from None


def _listener(attempt: _Attempt, row: int) -> Callable[[KafkaError | None, Message], None]:
    return lambda error, message: attempt.hear(row, error)


def _messages(
    consignment: Consignment, rows: Iterable[int], number: int, unreadable: list[FileError]
) -> Iterator[tuple[int, bytes]]:
    """Row and message of each alert; one that cannot be read is passed over and its error appended to ``unreadable``."""
    offsets, lengths = consignment.alerts["offset"], consignment.alerts["length"]
    for row in rows:
        try:
            body = read_body(consignment.path, int(offsets[row]), int(lengths[row]))
        except FileError as error:
            unreadable.append(error)
            continue
        yield int(row), wire_message(body, number)


def _arrived(messages: Iterator[Message]) -> dict[int, float]:
    """diaSourceId: when its message was taken, s since 1970."""
    found: dict[int, float] = {}
    for message in messages:
        key = message.key() or b""
        if key.isdigit():
            found.setdefault(int(key), message.timestamp()[1] / 1000.0)
    return found
