"""A real S3 server over HTTP on loopback, and a proxy in front of it that counts requests and makes faults."""

import http.client
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import boto3
from botocore.config import Config

from mura_ray.ports import free_port

BUCKET = "mura"


def environment(url: str) -> dict[str, str]:
    """What has boto3, and everything else that speaks S3, use the server at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def server_command(host: str, port: int) -> list[str]:
    """Moto's server, in the foreground."""
    return [sys.executable, "-c", "from moto.server import main; main()", "-H", host, "-p", str(port)]


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Moto's server, as a process of its own, with an empty bucket. Gives its URL."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(server_command("127.0.0.1", port), stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_open("127.0.0.1", port, log)
        plain_client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_until_open(host: str, port: int, log: Path) -> None:
    """Returns when something listens there."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def plain_client(url: str) -> Any:
    """A client beside the code under test."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(max_pool_connections=32),
    )


def put_folder(url: str, folder: Path, prefix: str) -> None:
    """Uploads all files of a folder."""
    client = plain_client(url)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes())


def list_folder(url: str, prefix: str) -> list[str]:
    """Relative keys of all objects below a prefix."""
    pages = plain_client(url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return sorted(item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ()))


def get_folder(url: str, prefix: str, *endings: str) -> dict[str, bytes]:
    """The objects below a prefix, those alone whose keys end so, by relative key. A run's optimisers are large."""
    client = plain_client(url)
    return {
        key: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read()
        for key in list_folder(url, prefix)
        if key.endswith(endings or "")
    }


@dataclass(frozen=True)
class Request:
    """A request as it came: its number (from 1), method, key below the bucket, query, access key, range, headers."""

    number: int
    method: str
    key: str
    query: str
    access_key: str
    range: str | None
    headers: frozenset[str] = frozenset()


Fault = Literal["slow down", "reset", "stall", "truncate", "flip", "expired", "denied", "whole", "hollow"]
"""`whole` answers a range with status 200 and everything, `hollow` that of an empty object with a byte that never comes
(s3rver does); the others are what their names say."""

_ANSWERS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass
class Proxy:
    """In front of an S3 server. `fault` says which fault a request meets, or None."""

    upstream: str
    fault: Callable[[Request], Fault | None] = lambda _: None
    stall_s: float = 60.0
    bytes_per_s: float | None = None
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[Fault, Request]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def count(self, method: str, ending: str = "") -> int:
        """Requests of a method for keys with an ending."""
        return sum(request.method == method and request.key.endswith(ending) for request in self.requests)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listens on loopback; gives the URL."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self._read_body()
        request = self._describe()
        fault = self.proxy.fault(request)
        with self.proxy.lock:
            self.proxy.requests.append(request)
            if fault:
                self.proxy.faults.append((fault, request))
        if fault == "reset":
            self._reset()
            return
        if fault in _ANSWERS:
            self._answer_error(*_ANSWERS[fault])
            return
        if fault == "hollow":
            self._send(206, [("Content-Range", "bytes 0-0/0"), ("ETag", '"x"')], b"", announced=1)
            self._reset()
            return
        status, headers, content = self._forward(body, drop_range=fault == "whole")
        if fault == "stall":
            self._send(status, headers, content[:1], len(content))
            time.sleep(self.proxy.stall_s)
            self._reset()
        elif fault == "truncate":
            self._send(status, headers, content[: len(content) // 2], len(content))
            self._reset()
        elif fault == "flip" and content:
            middle = len(content) // 2
            self._send(status, headers, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        else:
            self._send(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - the base class's names

    def _describe(self) -> Request:
        url = urlsplit(self.path)
        key = unquote(url.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        credential = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
        with self.proxy.lock:
            number = len(self.proxy.requests) + 1
        headers = frozenset(name.lower() for name in self.headers)
        return Request(number, self.command, key, url.query, credential, self.headers.get("Range"), headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes, *, drop_range: bool) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = {"transfer-encoding", "content-length", "expect", "connection"} | ({"range"} if drop_range else set())
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=120)
        try:
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
            kept = [item for item in answer.getheaders() if item[0].lower() not in ("connection", "transfer-encoding")]
            return answer.status, kept, content
        finally:
            upstream.close()

    def _answer_error(self, status: int, code: str, message: str) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else content)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, announced: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content) if announced is None else announced))
        self.end_headers()
        try:
            self._write(content)
        except ConnectionError:
            self.close_connection = True

    def _write(self, content: bytes) -> None:
        if self.proxy.bytes_per_s is None:
            self.wfile.write(content)
            return
        piece = 2**18
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            time.sleep(min(piece, len(content) - start) / self.proxy.bytes_per_s)

    def _reset(self) -> None:
        """Ends the connection with a RST, as a server or a middlebox that breaks down does."""
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except OSError:
            pass
