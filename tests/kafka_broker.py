"""librdkafka's mock cluster, one broker, in a process of its own: ``python kafka_broker.py``.

Prints its address, then obeys lines of standard input: ``topic NAME PARTITIONS``, ``down``, ``up``, ``rtt MS``,
``refuse CODE N`` (the next N produce requests), and answers each with ``ok``. It keeps about 5 MB a partition and fences nobody.
Unlike a broker it looks for repeated batches of transactional producers only; so before it goes ``down``, it takes no more
batches and lets the answers to those it took go out. What a client then repeats was never stored.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import pytest

PRODUCE = 0  # Kafka's ApiKey
BROKER = 1
NOT_ENOUGH_REPLICAS = 19  # a broker that takes nothing now
MANY = 10_000
ANSWERED_S = 0.1  # s, longer than any answer is delayed here


def library() -> ctypes.CDLL | None:
    """The librdkafka that confluent-kafka brings along, if its mock cluster can be called."""
    import confluent_kafka

    folders = Path(confluent_kafka.__file__).parent, Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    for path in (path for folder in folders for path in folder.glob("librdkafka*.so*")):
        found = ctypes.CDLL(str(path))
        if hasattr(found, "rd_kafka_mock_cluster_new"):
            return found
    return None


class MockBroker:
    """Runs the cluster as a child process. Use as a context."""

    topic = "alerts"

    def __init__(self) -> None:
        if library() is None:
            pytest.skip("this librdkafka has no mock cluster that can be called")
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "ok"

    def use(self, topic: str, partitions: int = 2) -> None:
        """Make a topic and work on it from now on."""
        self.topic = topic
        self.tell(f"topic {topic} {partitions}")

    def __enter__(self) -> MockBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def messages(self, mark: dict[int, int] | None = None) -> list:
        """Everything on the topic, or what came after the offsets of ``mark``."""
        from nightstream.io.alerts.kafka_topic import Mark, messages_since

        settings = {"bootstrap.servers": self.address}
        return list(messages_since(Mark(self.topic, mark or {}), settings, settle_s=0.0, is_stopping=lambda: False))

    def keys(self) -> list[int]:
        """diaSourceIds on the topic, sorted; one that was sent twice is there twice."""
        return sorted(int(message.key()) for message in self.messages())


def serve() -> None:
    """Run the cluster until standard input ends."""
    kafka = library()
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(kafka, name).restype = ctypes.c_void_p
    kafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    client = ctypes.c_void_p(kafka.rd_kafka_new(0, ctypes.c_void_p(kafka.rd_kafka_conf_new()), error, 512))
    cluster = ctypes.c_void_p(kafka.rd_kafka_mock_cluster_new(client, 1))
    print(kafka.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        obey(kafka, cluster, line.split())
        print("ok", flush=True)


def obey(kafka: ctypes.CDLL, cluster: ctypes.c_void_p, words: list[str]) -> None:
    """Carry out one command."""
    name, numbers = words[0], [int(word) for word in words[1:] if word.isdigit()]
    if name == "topic":
        kafka.rd_kafka_mock_topic_create(cluster, words[1].encode(), numbers[-1], 1)
    elif name == "refuse":
        refuse(kafka, cluster, *numbers)
    elif name == "rtt":
        kafka.rd_kafka_mock_broker_set_rtt(cluster, BROKER, *numbers)
    elif name == "down":
        refuse(kafka, cluster, NOT_ENOUGH_REPLICAS, MANY)
        time.sleep(ANSWERED_S)
        kafka.rd_kafka_mock_broker_set_down(cluster, BROKER)
    elif name == "up":
        kafka.rd_kafka_mock_clear_request_errors(cluster, ctypes.c_int16(PRODUCE))
        kafka.rd_kafka_mock_broker_set_up(cluster, BROKER)


def refuse(kafka: ctypes.CDLL, cluster: ctypes.c_void_p, code: int, times: int) -> None:
    """Answer the next produce requests with an error."""
    errors = (ctypes.c_int * times)(*[code] * times)
    kafka.rd_kafka_mock_push_request_errors_array(cluster, ctypes.c_int16(PRODUCE), ctypes.c_size_t(times), errors)


if __name__ == "__main__":
    serve()
