"""A schema registry of a few lines: what `nightstream.io.alerts.schema_registry` and Confluent's client ask for."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RegistryServer:
    """Serves on a free port of this machine while it is a context. ``refusal``: an HTTP status to answer with instead."""

    def __init__(self) -> None:
        self.schemas: list[str] = []  # id is 100 + place
        self.subjects: dict[str, list[int]] = {}
        self.authorizations: list[str | None] = []
        self.refusal = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RegistryServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def register(self, subject: str, schema: str) -> dict:
        if schema not in self.schemas:
            self.schemas.append(schema)
        number = 100 + self.schemas.index(schema)
        self.subjects.setdefault(subject, []).append(number)
        return {"id": number}

    def answer(self, method: str, parts: list[str], body: dict) -> tuple[int, dict]:
        if self.refusal:
            return self.refusal, {"error_code": self.refusal, "message": "no"}
        if method == "POST" and parts[0] == "subjects" and parts[2:] == ["versions"]:
            return 200, self.register(parts[1], body["schema"])
        if method == "GET" and parts[:2] == ["schemas", "ids"] and int(parts[2]) - 100 < len(self.schemas):
            return 200, {"schema": self.schemas[int(parts[2]) - 100]}
        return 404, {"error_code": 40401, "message": "not found"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self.reply({})

            def reply(self, body: dict) -> None:
                registry.authorizations.append(self.headers.get("Authorization"))
                status, said = registry.answer(self.command, self.path.partition("?")[0].strip("/").split("/"), body)
                text = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler
