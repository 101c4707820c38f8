"""Reading a Kafka topic back: where it ends, and what came after a remembered end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightstream.errors import ConfigError, DeliveryError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

logger = logging.getLogger(__name__)

ANSWER_S = 10.0  # s to wait for one answer of the broker
LOOK_S = 1.0  # s; longest wait before looking whether to stop
POLL_S = 0.1  # s
CHUNK = 500  # messages
PRODUCER_ONLY = {
    "acks", "batch.num.messages", "batch.size", "compression.codec", "compression.level", "compression.type",
    "delivery.timeout.ms", "enable.gapless.guarantee", "enable.idempotence", "linger.ms", "message.send.max.retries",
    "message.timeout.ms", "partitioner", "queue.buffering.backpressure.threshold", "queue.buffering.max.kbytes",
    "queue.buffering.max.messages", "queue.buffering.max.ms", "request.required.acks", "request.timeout.ms", "retries",
    "sticky.partitioning.linger.ms",
}  # fmt: skip
GROUP = {"group.id": "nightstream-outbox"}  # never joined, since partitions are assigned by hand; access rules may want a name
READING = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_uncommitted",  # a transaction of somebody else must hide nothing of ours
    "fetch.wait.max.ms": 50,
    "allow.auto.create.topics": True,
}


class ClientLog:
    """Takes librdkafka's own log lines, as many as there are attempts to connect. What matters comes back as errors."""

    @staticmethod
    def log(level: int, text: str, *values: object) -> None:
        """Called by confluent-kafka as it would call a logger."""
        logger.debug(text, *values)


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of a topic at some moment: the next offset of each partition."""

    topic: str
    offsets: Mapping[int, int]

    def record(self) -> dict:
        """As plain JSON values."""
        return {"topic": self.topic, "offsets": {str(partition): offset for partition, offset in self.offsets.items()}}

    @classmethod
    def read(cls, record: Mapping) -> Mark | None:
        """Back from `record`; None if it is no mark."""
        if not {"topic", "offsets"} <= set(record):
            return None
        return cls(record["topic"], {int(partition): int(offset) for partition, offset in record["offsets"].items()})


def end_of(topic: str, settings: Mapping[str, object], *, is_stopping: Callable[[], bool] = lambda: False) -> Mark:
    """The end of ``topic`` now. Raises DeliveryError if the broker does not say, or if ``is_stopping()`` turns true."""
    with _consumer(settings) as consumer:
        return Mark(topic, {partition: high for partition, (_, high) in _limits(consumer, topic, is_stopping).items()})


def messages_since(
    mark: Mark, settings: Mapping[str, object], *, settle_s: float, is_stopping: Callable[[], bool]
) -> Iterator[Message]:
    """Every message after ``mark`` that is still kept, until the topic has been quiet at its end for ``settle_s``.

    A partition that is new since then is read from its start, one that is shorter than it was (the topic was made anew) too.
    Raises DeliveryError if the broker does not answer, or if ``is_stopping()`` turns true.
    """
    with _consumer(settings) as consumer:
        start, quiet_since = dict(mark.offsets), None
        while quiet_since is None or time.monotonic() - quiet_since < settle_s:
            end = {}
            for partition, (low, high) in _limits(consumer, mark.topic, is_stopping).items():
                begin = start.get(partition, low)
                end[partition] = (begin if low <= begin <= high else low, high)
            if all(begin == high for begin, high in end.values()):
                quiet_since = quiet_since or time.monotonic()
                time.sleep(min(POLL_S, settle_s))
            else:
                quiet_since = None
                yield from _between(consumer, mark.topic, end, is_stopping)
            start = {partition: high for partition, (_, high) in end.items()}
            _stop_if(is_stopping)


def _between(
    consumer: Consumer, topic: str, limits: Mapping[int, tuple[int, int]], is_stopping: Callable[[], bool]
) -> Iterator[Message]:
    """The messages with ``begin <= offset < end`` of each partition."""
    from confluent_kafka import TopicPartition

    left = {partition: end for partition, (begin, end) in limits.items() if begin < end}
    consumer.assign([TopicPartition(topic, partition, limits[partition][0]) for partition in left])
    heard_s = time.monotonic()
    while left:
        _stop_if(is_stopping)
        for message in consumer.consume(CHUNK, POLL_S):
            partition, offset = _place(message)
            heard_s = time.monotonic()
            if offset < limits[partition][1]:
                yield message
        for position in consumer.position([TopicPartition(topic, partition) for partition in left]):
            if position.offset >= left[position.partition]:  # also past records that are none, as the end of a transaction
                del left[position.partition]
        if time.monotonic() - heard_s > ANSWER_S:
            raise DeliveryError(f"the broker sends nothing of partitions {sorted(left)}", path=topic)


def _place(message: Message) -> tuple[int, int]:
    """Partition and offset. Raises DeliveryError for an error that came in place of a message."""
    error, partition, offset = message.error(), message.partition(), message.offset()
    if error is not None or partition is None or offset is None:
        raise DeliveryError(
            f"reading the topic back: {error.str() if error else 'a message without a place'}", path=message.topic()
        )
    return partition, offset


def _limits(consumer: Consumer, topic: str, is_stopping: Callable[[], bool]) -> dict[int, tuple[int, int]]:
    """First kept and next offset of each partition; a topic that is not there yet may be made by asking for it."""
    from confluent_kafka import KafkaException, TopicPartition

    deadline = time.monotonic() + ANSWER_S
    while True:
        _stop_if(is_stopping)
        try:
            found = consumer.list_topics(topic, timeout=LOOK_S).topics[topic]
            if found.partitions and found.error is None:
                return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=LOOK_S) for p in found.partitions}
            reason = found.error.str() if found.error else "it has no partitions"
        except KafkaException as error:
            reason = error.args[0].str()
        if time.monotonic() > deadline:
            raise DeliveryError(f"the broker does not tell where the topic ends: {reason}", path=topic)
        time.sleep(POLL_S)


@contextmanager
def _consumer(settings: Mapping[str, object]) -> Iterator[Consumer]:
    from confluent_kafka import Consumer, KafkaException

    shared = {key: value for key, value in settings.items() if key not in PRODUCER_ONLY}
    try:
        consumer = Consumer(GROUP | shared | READING, logger=ClientLog)
    except KafkaException as error:
        raise ConfigError(f"kafka settings: {error.args[0].str()}") from None
    try:
        yield consumer
    finally:
        consumer.close()


def _stop_if(is_stopping: Callable[[], bool]) -> None:
    if is_stopping():
        raise DeliveryError("stopped before the topic was read back")
