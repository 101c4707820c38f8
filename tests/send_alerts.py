"""A sender in a process of its own, to be killed: ``python send_alerts.py OUTBOX SPOOL ADDRESS TOPIC``; prints ``empty``
at the end."""

from __future__ import annotations

import sys
from pathlib import Path

from fake_outbox import FakeOutbox

from nightstream.io import kafka_sink
from nightstream.io.kafka_sink import KafkaSink
from nightstream.scheduler.sender import Sender

SLOWLY = {"linger.ms": 0, "batch.num.messages": 10, "max.in.flight.requests.per.connection": 1}


def told(function):
    """``function``, which prints ``sending`` when it is first called."""
    calls = []

    def call(*arguments):
        if not calls:
            calls.append(print("sending", flush=True))
        return function(*arguments)

    return call


def main(outbox: str, spool: str, address: str, topic: str) -> None:
    """Send until the outbox is empty."""
    sink = KafkaSink(topic, {"bootstrap.servers": address, **SLOWLY}, settle_s=0.1)
    kafka_sink.read_body = told(kafka_sink.read_body)
    sender = Sender(FakeOutbox(outbox), sink, Path(spool), retry_s=0.05).start()
    if sender.drain(60.0):
        print("empty", flush=True)
    sender.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
