"""A web server of a folder that honours ranges and lets every request wait, as an object store does.

    python benchmarks/speed/data_server.py FOLDER [--latency SECONDS]

Its first line of output is its address. It stands alone, so that it starts at once and in a process of its own.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class RangeHandler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD for files, whole or one range of bytes.

    Args:
        *args: as for SimpleHTTPRequestHandler.
        latency: seconds before every answer.
        **kwargs: as for SimpleHTTPRequestHandler.
    """

    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True  # else a header and its content wait for each other

    def __init__(self, *args: Any, latency: float, **kwargs: Any) -> None:
        self.latency = latency
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Send a file or the range of it that was asked for."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the content."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        time.sleep(self.latency)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            first, end = 0, size
            if asked:
                first, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
            if asked and first >= end:
                self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.end_headers()
            if body:
                self.connection.sendfile(stream, first, end - first)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # several processes connect at once

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that has had enough may go in the middle of a file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def serve(folder: Path, latency: float) -> Iterator[str]:
    """Serve a folder from another process.

    Args:
        folder: what to serve.
        latency: seconds that every request waits.

    Yields:
        The address that stands for the folder.
    """
    command = [sys.executable, __file__, str(folder), "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()  # type: ignore[union-attr]
        finally:
            process.kill()


def main() -> int:
    """Serve until the process is ended.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to serve")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before every answer")
    arguments = parser.parse_args()
    handler = partial(RangeHandler, latency=arguments.latency, directory=str(arguments.folder))
    server = _Server(("127.0.0.1", 0), handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
