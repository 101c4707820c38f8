"""Errors say where they happened, are also the builtin one expects, and survive the way between processes."""

import inspect
import pickle

import pytest

from nightstream import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.NightstreamError)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_error_says_the_same(kind):
    """Type, message and place come back unchanged."""
    error = kind("got 3 amplifiers, wanted 16", visit=5, detector=7, path="a.fits")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and str(back) == str(error)
    assert (back.visit, back.detector, back.path) == (5, 7, "a.fits")


def test_the_message_names_visit_detector_and_file():
    """What is filled in later does not overwrite what was known first."""
    error = errors.FileError("truncated", path="a.fits").locate(visit=5, detector=7, path="other.fits")
    assert str(error) == "truncated [visit 5, detector 7, file a.fits]"


def test_errors_are_also_builtin_ones():
    """A caller who knows only Python catches OSError and ValueError."""
    assert issubclass(errors.FileError, OSError)
    assert issubclass(errors.InputError, ValueError) and issubclass(errors.UnprocessableError, RuntimeError)
