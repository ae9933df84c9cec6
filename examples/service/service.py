"""Serve a model over HTTP: `python service.py CHECKPOINT [PORT]`, then `curl 'localhost:8000/?prime=It+was'`."""

import contextlib
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import charlstm

OPTIONS: dict[str, Any] = {"prime": str, "length": int, "temperature": float, "seed": int}


class Service(BaseHTTPRequestHandler):
    """Answers each request with a text that is sent while it is generated."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Answer the requests of one client until it disconnects."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Generate a text with the options of the query."""
        query = {"length": "500"} | dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        try:
            options = {name: OPTIONS[name](value) for name, value in query.items()}
            if not 1 <= options["length"] <= 10_000:
                raise ValueError("length must be between 1 and 10000")
            stream = model.stream(**options)
        except (charlstm.CharlstmError, KeyError, ValueError) as error:
            return self.send_error(400, explain=f"{error}; the options are {', '.join(OPTIONS)}")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for data in (text.encode() for text in stream):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
        return None


if __name__ == "__main__":
    model = charlstm.load(sys.argv[1])
    address = os.environ.get("HOST", "localhost"), int(sys.argv[2] if len(sys.argv) > 2 else 8000)
    ThreadingHTTPServer(address, Service).serve_forever()
