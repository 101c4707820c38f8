"""Every error Nightstream raises on purpose. A leaf: it imports nothing of the project, so that every room may use it.

Each error says what was got and what was wanted, keeps the offending values as attributes, and survives pickling, because
errors cross process borders. Where a file, visit or detector is known, the message names it.
"""

from __future__ import annotations


class NightstreamError(Exception):
    """Base of all errors raised on purpose.

    ``visit``, ``detector`` and ``path`` may be filled in later, by the caller that knows them, with `locate`.
    """

    def __init__(self, message: str, *, visit: int | None = None, detector: int | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.visit = visit
        self.detector = detector
        self.path = path

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (("visit", self.visit), ("detector", self.detector), ("file", self.path))
            if value is not None
        ]
        return f"{self.message} [{', '.join(where)}]" if where else self.message

    def __reduce__(self):
        return _rebuild, (type(self), self.message, self.visit, self.detector, self.path)

    def locate(self, *, visit: int | None = None, detector: int | None = None, path: str | None = None) -> NightstreamError:
        """Fill in where it happened, keeping what is already known; return the error itself."""
        self.visit = self.visit if self.visit is not None else visit
        self.detector = self.detector if self.detector is not None else detector
        self.path = self.path if self.path is not None else path
        return self


def _rebuild(kind, message, visit, detector, path):
    return kind(message, visit=visit, detector=detector, path=path)


class InputError(NightstreamError, ValueError):
    """An input is not what it must be: shape, dtype, header, camera, missing amplifier."""


class FileError(NightstreamError, OSError):
    """A file is missing, truncated, unreadable or could not be written."""

    def __init__(self, message: str, **where) -> None:
        NightstreamError.__init__(self, message, **where)

    __str__ = NightstreamError.__str__


class ConfigError(NightstreamError, ValueError):
    """A configuration value is unknown or out of range."""


class CalibrationError(NightstreamError, ValueError):
    """A calibration is missing or does not fit the raw frame."""


class UnprocessableError(NightstreamError, RuntimeError):
    """The pixels themselves do not allow the step: all masked, no stars, no overlap with the template."""


class DeviceError(NightstreamError, RuntimeError):
    """A GPU was asked for and is absent or broken."""


class DeliveryError(NightstreamError, RuntimeError):
    """Alerts cannot be handed over now, because the broker or the schema registry is away or refuses; worth trying again."""


class DatabaseError(NightstreamError, RuntimeError):
    """The prompt database cannot be opened, read or written."""


class ConflictError(DatabaseError):
    """Somebody else wrote to the prompt database since it was read; nothing was stored."""


class DisconnectedError(DatabaseError):
    """The connection to the prompt database broke while it was used; what was under way may be done again."""
