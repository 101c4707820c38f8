"""Visits to publish, in the order in which they arrived, in a thread of its own, so that no pixel waits for a database.

A visit is announced with `expect` when it arrives and handed over with `offer` when its last detector has ended. Visits may
end in any order; they are published in the order of `expect`, since history must not depend on which one was faster.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndedVisit:
    """A visit that waits to be published: the products of the detectors that succeeded."""

    visit: int
    products: tuple[Path, ...]
    arrived_mjd_tai: float


@dataclass(slots=True)
class PublishQueue:
    """``publish`` is called for one visit after the other, in this queue's thread; what it raises goes to ``on_error``."""

    publish: Callable[[EndedVisit], object]
    on_error: Callable[[int, Exception], object]
    _expected: deque[tuple[int, float]] = field(default_factory=deque)
    _ended: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_closed: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
        self._thread.start()

    def expect(self, visit: int, arrived_mjd_tai: float) -> None:
        """Announce a visit; its turn comes after those announced before."""
        with self._changed:
            self._expected.append((visit, arrived_mjd_tai))

    def offer(self, visit: int, products: Sequence[Path]) -> None:
        """Hand a visit over that has ended; without products its turn is passed."""
        with self._changed:
            self._ended[visit] = tuple(products)
            self._changed.notify_all()

    def close(self, *, at_once: bool = False) -> None:
        """Publish what has been handed over, then end the thread. Visits that never ended are not waited for.

        ``at_once``: only the visit that is being published comes to its end.
        """
        with self._changed:
            self._is_closed = True
            if at_once:
                self._expected.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (ended := self._next()) is not None:
            try:
                if ended.products:
                    self.publish(ended)
            except Exception as error:  # one visit's error is told; the next visit must go on
                logger.error("visit %d was not published", ended.visit, exc_info=error)
                self.on_error(ended.visit, error)

    def _next(self) -> EndedVisit | None:
        """Wait for the visit whose turn it is; None when there will be none."""
        with self._changed:
            while True:
                if self._is_closed:  # whoever never ended has lost its turn
                    self._expected = deque(entry for entry in self._expected if entry[0] in self._ended)
                if self._expected and self._expected[0][0] in self._ended:
                    visit, arrived = self._expected.popleft()
                    return EndedVisit(visit, self._ended.pop(visit), arrived)
                if self._is_closed:
                    return None
                self._changed.wait()
