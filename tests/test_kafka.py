"""Alerts on Kafka: each arrives once, whatever becomes of broker and sender. The broker is librdkafka's mock cluster."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_outbox import READOUT_MJD_TAI, SCHEMA, FakeOutbox, body, spool
from kafka_broker import MockBroker
from schema_registry_server import RegistryServer
from send_alerts import publish_visit, run_sender, sent_of

from nightstream.errors import ConfigError, DeliveryError
from nightstream.io.alerts import kafka_topic
from nightstream.io.alerts.kafka_sink import KafkaSink, check_settings
from nightstream.io.alerts.kafka_topic import end_of
from nightstream.io.alerts.schema_registry import register_schema
from nightstream.io.clock import now_mjd_tai
from nightstream.io.database.prompt_database import open_database
from nightstream.scheduler.alerts_config import AlertsConfig, KafkaConfig, make_sink
from nightstream.scheduler.sender import Sender

pytest.importorskip("confluent_kafka")

QUICK = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50, "retry.backoff.ms": 10}
MSG_SIZE_TOO_LARGE = 10
ENDED_S = 20.0


@pytest.fixture(scope="module")
def shared_broker():
    with MockBroker() as broker:
        yield broker


@pytest.fixture
def broker(shared_broker, request):
    """The module's broker with a topic of this test."""
    shared_broker.use(request.node.name.replace("[", ".").replace("]", ""))
    return shared_broker


def sink_of(broker, **more) -> KafkaSink:
    return KafkaSink(broker.topic, {"bootstrap.servers": broker.address, **QUICK}, settle_s=0.1, **more)


def sending(outbox, sink, folder, **more) -> Sender:
    return Sender(outbox, sink, folder, poll_s=0.05, retry_s=0.02, max_retry_s=0.1, **more).start()


def ids_of(count: int, visit: int = 1) -> np.ndarray:
    return np.arange(count) + 1000 * visit + 2**60


def send_all(outbox, sink, folder) -> None:
    sender = sending(outbox, sink, folder)
    assert sender.drain(ENDED_S), sender.status
    sender.close()


def test_every_alert_arrives_once_with_its_id_as_key(broker, tmp_path):
    """Key diaSourceId, value Confluent's wire form with Rubin's fixed id; the outbox knows when each was sent."""
    outbox, ids = FakeOutbox(), ids_of(200)
    spool(outbox, tmp_path, 1, ids)
    before = now_mjd_tai()
    send_all(outbox, sink_of(broker), tmp_path)
    values = {int(message.key()): message.value() for message in broker.messages()}
    assert broker.keys() == ids.tolist()
    assert all(value == b"\0\0\0\x04\x4d" + body(key) for key, value in values.items())  # 1101
    sent = outbox.sent()
    assert list(sent) == ids.tolist() and all(before <= t <= now_mjd_tai() for t in sent.values())


def test_confluents_own_consumer_decodes_the_messages(broker, tmp_path):
    """The schema is registered before the first message and found by the id in it."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    outbox, ids = FakeOutbox(), ids_of(3)
    spool(outbox, tmp_path, 1, ids)
    with RegistryServer() as registry:
        subjects = ("alert-packet", "lsst-alerts-v11.1-value")
        send_all(
            outbox, sink_of(broker, registry_url=registry.url, subjects=subjects, schema_of=lambda version: SCHEMA), tmp_path
        )
        with SchemaRegistryClient({"url": registry.url}) as client:
            decode = AvroDeserializer(client)
            records = [decode(message.value(), None) for message in broker.messages()]
    assert registry.subjects == dict.fromkeys(subjects, [100])
    assert sorted(record["diaSourceId"] for record in records) == ids.tolist()


def test_nothing_is_sent_while_the_registry_refuses(broker, tmp_path):
    """A refusal is told and tried again; then all goes out."""
    outbox = FakeOutbox()
    spool(outbox, tmp_path, 1, ids_of(5))
    with RegistryServer() as registry:
        registry.refusal = 422
        sender = sending(outbox, sink_of(broker, registry_url=registry.url, schema_of=lambda version: SCHEMA), tmp_path)
        assert not sender.drain(0.2)
        assert "422" in sender.status.trouble and outbox.sent() == {}
        registry.refusal = 0
        assert sender.drain(ENDED_S)
        sender.close()
    assert broker.keys() == ids_of(5).tolist()


def test_registry_errors_name_the_address_without_the_password():
    """User and password go into the request, not into messages."""
    with RegistryServer() as registry:
        url = registry.url.replace("http://", "http://me:pass%21@")
        assert register_schema(url, ["a", "b"], "{}") == 100
        assert registry.authorizations[0] == "Basic bWU6cGFzcyE="
    with pytest.raises(DeliveryError, match="no answer from the schema registry") as error:
        register_schema(url, ["a"], "{}")
    assert "pass%21" not in str(error.value) and registry.url in str(error.value)


def test_a_broker_that_goes_away_loses_and_doubles_nothing(broker, tmp_path):
    """Three times down while alerts are on their way and new visits come in; the publisher never waits for it."""
    outbox, visits = FakeOutbox(), range(1, 8)
    sender = sending(outbox, sink_of(broker), tmp_path)
    broker.tell("rtt 20")
    longest_s = 0.0
    for visit in visits:
        begun_s = time.monotonic()
        spool(outbox, tmp_path, visit, ids_of(300, visit))
        sender.wake()
        longest_s = max(longest_s, time.monotonic() - begun_s)
        if visit % 2 == 0:
            time.sleep(0.05)
            broker.tell("down")
            time.sleep(0.1)
        elif visit > 1:
            broker.tell("up")
    broker.tell("rtt 0")
    assert sender.drain(ENDED_S), sender.status
    sender.close()
    everything = np.concatenate([ids_of(300, visit) for visit in visits]).tolist()
    assert broker.keys() == everything and list(outbox.sent()) == everything
    assert longest_s < 5.0  # far below the time that the broker was away or the sender busy: no lock is held meanwhile


def test_a_sender_that_is_closed_while_the_broker_is_away_leaves_the_rest_for_the_next(broker, tmp_path):
    """Closing does not wait for the broker; the next sender reads the topic back and sends what is missing."""
    outbox, ids = FakeOutbox(), ids_of(400)
    spool(outbox, tmp_path, 1, ids)
    broker.tell("rtt 30")
    first = sending(outbox, sink_of(broker), tmp_path)
    wait_until(lambda: outbox.unsent_files()[0].progress)
    broker.tell("down")
    first.close()
    broker.tell("up")
    broker.tell("rtt 0")
    send_all(outbox, sink_of(broker), tmp_path)
    assert broker.keys() == ids.tolist() and list(outbox.sent()) == ids.tolist()


def test_a_broker_that_was_never_there_holds_nobody_up(broker, tmp_path, monkeypatch):
    """The sender waits for it by itself, tells so, and can be closed meanwhile; the outbox is as it was."""
    outbox = FakeOutbox()
    spool(outbox, tmp_path, 1, ids_of(5))
    monkeypatch.setattr(kafka_topic, "ANSWER_S", 0.2)
    broker.tell("down")
    sender = sending(outbox, sink_of(broker), tmp_path)
    wait_until(lambda: "does not tell where the topic ends" in sender.status.trouble)
    sender.close()
    broker.tell("up")
    assert outbox.sent() == {} and outbox.unsent_files()[0].progress == "" and broker.keys() == []


def test_what_is_on_the_topic_is_not_sent_again(broker, tmp_path):
    """Alerts that arrived before a crash are booked with the time at which the broker took them."""
    outbox, ids = FakeOutbox(), ids_of(50)
    spool(outbox, tmp_path, 1, ids)
    send_all(outbox, sink_of(broker), tmp_path)
    first = outbox.sent()
    outbox._do("update alerts set sent = null where id > ?", [(int(ids[9]),)])  # the books were lost after the tenth
    send_all(outbox, sink_of(broker), tmp_path)
    assert broker.keys() == ids.tolist()
    # Kafka counts milliseconds from when the alert was handed over; the booking came after that.
    assert all(first[i] - 5 / 86400 < t <= first[i] + 1e-3 / 86400 for i, t in outbox.sent().items())


def test_a_killed_sender_loses_and_doubles_nothing(broker, tmp_path):
    """SIGKILL at random moments, again and again, until one sender lives long enough: every alert once."""
    rng, kills = np.random.default_rng(3), 0
    path, ids = tmp_path / "prompt.duckdb", ids_of(600)
    with open_database(path) as database:
        for visit, part in enumerate(np.split(ids, 3)):
            publish_visit(database, tmp_path, visit, part)
    broker.tell("rtt 10")
    where = "kafka", broker.address, broker.topic
    while not run_sender(path, tmp_path, *where, kill_after_s=rng.uniform(0.3, 1.0) if kills < 6 else None):
        kills += 1
    broker.tell("rtt 0")
    assert kills >= 1  # the three files take longer than that
    assert broker.keys() == ids.tolist() and sent_of(path) == (ids.tolist(), 0)


def test_an_alert_that_is_too_large_does_not_hold_up_the_others(broker, tmp_path):
    """It stays in the outbox with the reason, and is not tried again."""
    outbox, ids = FakeOutbox(), ids_of(20)
    spool(outbox, tmp_path, 1, ids, sizes={int(ids[7]): 5 * 1024 * 1024})
    send_all(outbox, sink_of(broker), tmp_path)
    assert broker.keys() == np.delete(ids, 7).tolist()
    assert list(outbox.failed()) == [ids[7]] and "size too large" in outbox.failed()[ids[7]]


def test_a_failed_alert_can_be_sent_after_all(broker, tmp_path):
    """The SQL of docs/kafka.md puts it back into the outbox; only that alert is sent then."""
    page = (Path(__file__).parents[1] / "docs" / "kafka.md").read_text()
    ids = ids_of(5)
    with open_database(tmp_path / "prompt.duckdb") as database:
        publish_visit(database, tmp_path, 1, ids)
        database.mark_failed(ids[[2]], "too large")
        send_all(database, sink_of(broker), tmp_path)
        assert broker.keys() == np.delete(ids, 2).tolist() and database.unsent_files() == []
        with database._store.transaction(write=True) as session:
            for statement in page.split("```sql\n")[1].split("```")[0].strip().split(";\n"):
                session.execute(statement.strip(";").replace("123", str(ids[2])))
        send_all(database, sink_of(broker), tmp_path)
        assert database.unsent_files() == []
    assert broker.keys() == ids.tolist()


def test_a_refused_batch_goes_out_one_by_one(broker, tmp_path):
    """A broker that refuses a whole batch for its size gets its alerts singly; only what it then refuses has failed."""
    outbox, ids = FakeOutbox(), ids_of(40)
    spool(outbox, tmp_path, 1, ids)
    sink = sink_of(broker)
    end_of(broker.topic, {"bootstrap.servers": broker.address})
    broker.tell(f"refuse {MSG_SIZE_TOO_LARGE} 3")
    send_all(outbox, sink, tmp_path)
    failed = list(outbox.failed())
    assert len(failed) <= 1  # two requests carry the two partitions' batches, so the third refusal hits one single alert
    assert broker.keys() == sorted(set(ids.tolist()) - set(failed))
    assert sorted([*outbox.sent(), *failed]) == ids.tolist()


def test_latency_counts_from_readout(broker, tmp_path):
    """The sender tells how late the latest alert was."""
    outbox, told = FakeOutbox(), []
    spool(outbox, tmp_path, 5, ids_of(10))
    sender = sending(outbox, sink_of(broker), tmp_path, on_file=lambda visit, status: told.append((visit, status)))
    assert sender.drain(ENDED_S)
    sender.close()
    visit, status = told[0]
    expected_s = (max(outbox.sent().values()) - READOUT_MJD_TAI) * 86400
    assert visit == 5 and status.n_sent == 10 and status.n_waiting == 0
    assert status.latest_s == pytest.approx(expected_s, abs=1e-3)


def test_a_topic_made_anew_is_read_from_its_start(broker):
    """A mark beyond the end of a partition says nothing about it, and a new partition was never marked."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.address})
    for key in range(20):
        producer.produce(broker.topic, key=str(key).encode(), value=b"x")
    producer.flush()
    assert sorted(int(message.key()) for message in broker.messages({0: 10**6})) == list(range(20))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "lack bootstrap.servers"),
        ({"bootstrap.servers": "x", "acks": 1}, "got kafka setting acks 1, wanted all"),
        ({"bootstrap.servers": "x", "enable.idempotence": False}, "enable.idempotence false, wanted true"),
        ({"bootstrap.servers": "x", "transactional.id": "a"}, "transactional.id is not supported"),
    ],
)
def test_settings_that_would_break_the_promise_are_refused(settings, message):
    """When the sink is made, and already when the configuration is read."""
    with pytest.raises(ConfigError, match=message):
        check_settings(settings)
    with pytest.raises(ValueError, match=message):
        KafkaConfig(topic="alerts", settings=settings)


def test_the_configuration_chooses_the_sink(broker, tmp_path):
    """Settings of librdkafka pass through as they are; one that it does not know is an error at once."""
    settings = {"bootstrap.servers": broker.address, "sasl.mechanism": "SCRAM-SHA-512"}
    config = AlertsConfig.model_validate({"kafka": {"topic": broker.topic, "settings": settings}})
    sink = make_sink(config.located(tmp_path))
    assert isinstance(sink, KafkaSink)
    sink.close()
    with pytest.raises(ConfigError, match="no.such"):
        KafkaSink("alerts", settings | {"no.such": 1})


def test_messages_come_from_a_thread_of_the_sender(broker, tmp_path):
    """`start` returns at once and nothing of Kafka runs in the caller's thread."""
    outbox = FakeOutbox()
    spool(outbox, tmp_path, 1, ids_of(5))
    seen = set()
    original = outbox.mark_sent
    outbox.mark_sent = lambda ids, times: (seen.add(threading.current_thread().name), original(ids, times))
    send_all(outbox, sink_of(broker), tmp_path)
    assert seen == {"send"}


def wait_until(claim, timeout_s: float = ENDED_S) -> None:
    """Look again and again until ``claim()`` holds."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)
