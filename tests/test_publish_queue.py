"""Publishing order: that of arrival, whatever the order in which visits end; one failure never another's."""

from __future__ import annotations

import threading
from pathlib import Path

from nightstream.scheduler.publish_queue import PublishQueue

PRODUCT = (Path("detector=000.h5"),)


def published(events):
    """Run ``events``, calls on a started queue, and return the visits in the order of publication, and the errors."""
    seen, errors = [], []

    def publish(ended):
        if ended.visit < 0:
            raise RuntimeError("cannot")
        seen.append((ended.visit, ended.arrived_mjd_tai))

    queue = PublishQueue(publish, on_error=lambda visit, error: errors.append((visit, str(error))))
    queue.start()
    for event in events:
        event(queue)
    queue.close()
    return seen, errors


def test_visits_are_published_in_the_order_of_arrival():
    """Visit 2 ends before visit 1 and still comes second."""
    seen, _ = published([
        lambda q: q.expect(1, 10.0), lambda q: q.expect(2, 20.0),
        lambda q: q.offer(2, PRODUCT), lambda q: q.offer(1, PRODUCT),
    ])  # fmt: skip
    assert seen == [(1, 10.0), (2, 20.0)]


def test_one_that_fails_does_not_stop_the_next():
    """The error names its visit."""
    seen, errors = published([
        lambda q: q.expect(-1, 0.0), lambda q: q.expect(2, 0.0),
        lambda q: q.offer(-1, PRODUCT), lambda q: q.offer(2, PRODUCT),
    ])  # fmt: skip
    assert seen == [(2, 0.0)] and errors == [(-1, "cannot")]


def test_a_visit_that_never_ends_or_has_no_products_only_loses_its_turn():
    """A run that is broken off still publishes what has ended."""
    seen, _ = published([
        lambda q: q.expect(1, 0.0), lambda q: q.expect(2, 0.0), lambda q: q.expect(3, 0.0),
        lambda q: q.offer(2, ()), lambda q: q.offer(3, PRODUCT),
    ])  # fmt: skip
    assert seen == [(3, 0.0)]


def test_publishing_does_not_hold_up_who_hands_over():
    """`offer` returns while the visit before it is still being published."""
    release = threading.Event()
    queue = PublishQueue(lambda ended: release.wait(10), on_error=lambda *_: None)
    queue.start()
    for visit in (1, 2):
        queue.expect(visit, 0.0)
        queue.offer(visit, PRODUCT)
    release.set()
    queue.close()
