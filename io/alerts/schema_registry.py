"""A Confluent schema registry, as much of it as a producer needs: register a schema, get its id. Plain HTTP."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

from nightstream.errors import DeliveryError

TIMEOUT_S = 10.0
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"


def register_schema(url: str, subjects: Sequence[str], schema: str) -> int:
    """Register the Avro ``schema`` (JSON text) under each of ``subjects`` and return the id that the registry gave it.

    Registering again changes nothing and gives the same id. A user and password may stand in ``url``. Raises
    DeliveryError if the registry is away, refuses, or gives one schema two ids.
    """
    body = json.dumps({"schema": schema}).encode()
    ids = {_post(url, f"/subjects/{urllib.parse.quote(subject, safe='')}/versions", body) for subject in subjects}
    if len(ids) != 1:
        raise DeliveryError(f"the schema registry gave ids {sorted(ids)} to one schema, wanted one id", path=_public(url))
    return ids.pop()


def _post(url: str, path: str, body: bytes) -> int:
    try:
        with urllib.request.urlopen(_request(url, path, body), timeout=TIMEOUT_S) as answer:
            return int(json.load(answer)["id"])
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace")
        raise DeliveryError(f"the schema registry refused {path}: {error.code} {said}", path=_public(url)) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeliveryError(f"no answer from the schema registry: {error}", path=_public(url)) from error


def _request(url: str, path: str, body: bytes) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    if parts.username:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return urllib.request.Request(_public(url).rstrip("/") + path, data=body, headers=headers, method="POST")


def _public(url: str) -> str:
    """The address without user and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
