"""Objects in S3, through boto3: read and written whole, with retries over the faults that S3 really has.

Asks little of a server: plain ranges, also answered with the whole object (status 200), no conditional writes, no
checksums of its own. Credentials come by boto3's own chain, another server by AWS_ENDPOINT_URL.
"""

import base64
import email.utils
import hashlib
import logging
import mmap
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import boto3
import botocore.exceptions
import urllib3.exceptions
from botocore.config import Config

T = TypeVar("T")

SCHEME = "s3://"
PART_BYTES = 8 * 2**20
"""Of one range read and of one part of a multipart write (S3's least is 5 MiB)."""

THREADS = 16
"""Requests at a time of one process, for parts of large objects."""

ATTEMPTS = 10
CREDENTIAL_ATTEMPTS = 3
BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0
"""Waits between attempts: doubling, with jitter; 45 s at most before a request is given up."""

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 20.0
"""A read that brings nothing for so long is a stall, and is tried again."""

_logger = logging.getLogger(__name__)


class StorageError(OSError):
    """A storage operation that failed in the end. Its text names the URI, the operation, the reason and the remedy."""


class MissingObjectError(StorageError):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, and what changes when the content does: S3's ETag, or a file's time of the last change."""

    num_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """What an error means: whether another attempt may help, and what helps where none does."""

    reason: str
    remedy: str
    attempts: int = 1
    kind: type[StorageError] = StorageError
    is_expired: bool = False


class _DamagedBodyError(Exception):
    """A body that is not what was asked for: too short, or another range."""


class _ChangedError(StorageError):
    """The object was replaced between two of its parts."""


class _EmptyObjectError(StorageError):
    """An object of no bytes has no first byte: servers answer a range of it with an error."""


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key may be empty.

    Raises:
        ValueError: no bucket.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise ValueError(f"{uri!r} is no S3 URI: the form is s3://bucket/key")
    return bucket, key


def stat(uri: str) -> FileStat | None:
    """Size and version of an object; None where there is none."""
    bucket, key = split_uri(uri)
    if not key:
        return None
    try:
        head = _request("head", uri, lambda client: client.head_object(Bucket=bucket, Key=key))
    except MissingObjectError:
        return None
    return FileStat(head["ContentLength"], head["ETag"])


def read(uri: str) -> bytes:
    """The whole object, large ones by parallel ranges of one and the same version.

    Raises:
        MissingObjectError: there is none.
        StorageError: it cannot be read.
    """
    for _ in range(ATTEMPTS):
        try:
            return _read_once(uri)
        except _ChangedError:
            _logger.warning("%s was replaced while it was read; reading it again", uri)
    raise StorageError(f"{uri}: read failed: it was replaced {ATTEMPTS} times while it was read; stop what writes it")


def read_start(uri: str, num_bytes: int) -> bytes:
    """The first bytes of an object, fewer if it is smaller; errors as of `read`."""
    return _read_first(uri, num_bytes)[0][:num_bytes]


def write(uri: str, content: bytes | mmap.mmap) -> None:
    """Writes one object: whole or not at all, large ones in parallel parts.

    Raises:
        StorageError: it cannot be written; what was there before is there still.
    """
    bucket, key = split_uri(uri)
    if len(content) <= 2 * PART_BYTES:
        body = bytes(content)
        md5 = _md5(body)
        _request("write", uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=body, ContentMD5=md5))
        return
    try:
        _write_parts(uri, content)
    except MissingObjectError:  # the upload: swept away, or completed by a request whose answer was lost
        _write_parts(uri, content)


def remove(uris: Sequence[str]) -> None:
    """Removes objects; one that is not there counts as removed."""

    def one(uri: str) -> None:
        bucket, key = split_uri(uri)
        _request("remove", uri, lambda client: client.delete_object(Bucket=bucket, Key=key))

    list(_pool().map(one, uris))


def list_objects(uri: str) -> Iterator[tuple[str, FileStat]]:
    """All objects below `uri/`, by key: their keys relative to it, and what they are."""
    bucket, key = split_uri(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = _request("list", uri, lambda client, now=dict(arguments): client.list_objects_v2(**now))
        for item in page.get("Contents", ()):
            yield item["Key"].removeprefix(prefix), FileStat(item["Size"], item["ETag"])
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def has_below(uri: str) -> bool:
    """Whether any object lies below `uri/`."""
    bucket, key = split_uri(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    page = _request("list", uri, lambda client: client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
    return bool(page.get("Contents"))


def server_time(uri: str) -> float:
    """The server's clock, in seconds since the epoch, read while this request was on its way."""
    bucket, _ = split_uri(uri)
    answer = _request("list", uri, lambda client: client.list_objects_v2(Bucket=bucket, MaxKeys=1))
    date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
    return email.utils.parsedate_to_datetime(date).timestamp()


def _read_first(uri: str, num_bytes: int) -> tuple[bytes, int, str]:
    """The first bytes of an object, all of it where the server knows no ranges; its size and version."""
    bucket, key = split_uri(uri)

    def whole(client: Any) -> tuple[bytes, int, str]:
        answer = client.get_object(Bucket=bucket, Key=key)
        content = _body(answer)
        return content, len(content), answer["ETag"]

    def first(client: Any) -> tuple[bytes, int, str]:
        answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{num_bytes - 1}")
        if "ContentRange" not in answer:  # a server that knows no ranges sends everything
            content = _body(answer)
            return content, len(content), answer["ETag"]
        start, total = _range(answer["ContentRange"])
        if total == 0:  # not an error, as by the book, but some servers then announce a byte that never comes
            answer["Body"].close()
            return b"", 0, answer["ETag"]
        content = _body(answer)
        if start != 0 or len(content) != min(num_bytes, total):
            raise _DamagedBodyError(f"asked for its first {num_bytes} bytes, got {answer['ContentRange']}")
        return content, total, answer["ETag"]

    try:
        return _request("read", uri, first)
    except _EmptyObjectError:
        return _request("read", uri, whole)


def _read_once(uri: str) -> bytes:
    bucket, key = split_uri(uri)
    content, total, etag = _read_first(uri, PART_BYTES)
    if len(content) == total:
        return content
    result = bytearray(total)
    result[: len(content)] = content

    def further_part(start: int) -> None:
        end = min(start + PART_BYTES, total)

        def get(client: Any) -> bytes:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag)
            part = _body(answer)
            if answer["ETag"] != etag:
                raise _ChangedError(uri)
            if "ContentRange" not in answer and len(part) == total:
                part = part[start:end]
            if len(part) != end - start or _range(answer.get("ContentRange", f"bytes {start}-/{total}"))[0] != start:
                raise _DamagedBodyError(f"asked for bytes {start}-{end - 1}, got {len(part)} bytes")
            return part

        result[start:end] = _request("read", uri, get)

    list(_pool().map(further_part, range(PART_BYTES, total, PART_BYTES)))
    return bytes(result)


def _write_parts(uri: str, content: bytes | mmap.mmap) -> None:
    bucket, key = split_uri(uri)
    target = {"Bucket": bucket, "Key": key}
    upload = _request("write", uri, lambda client: client.create_multipart_upload(**target))["UploadId"]

    def part(number: int) -> dict[str, Any]:
        body = content[(number - 1) * PART_BYTES : number * PART_BYTES]
        md5 = _md5(body)
        answer = _request(
            "write",
            uri,
            lambda client: client.upload_part(**target, UploadId=upload, PartNumber=number, Body=body, ContentMD5=md5),
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        parts = list(_pool().map(part, range(1, -(-len(content) // PART_BYTES) + 1)))
        _request(
            "write",
            uri,
            lambda client: client.complete_multipart_upload(
                **target, UploadId=upload, MultipartUpload={"Parts": parts}
            ),
        )
    except BaseException:
        try:  # parts of an unfinished upload are invisible, but cost as much as others
            _client().abort_multipart_upload(**target, UploadId=upload)
        except Exception as error:
            _logger.info("%s: the unfinished upload %s stays: %s", uri, upload, error)
        raise


def _md5(content: bytes) -> str:
    """What makes the server refuse a body that was damaged on its way; every S3 server knows this header."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _body(answer: dict[str, Any]) -> bytes:
    content = answer["Body"].read()
    if len(content) != answer["ContentLength"]:
        raise _DamagedBodyError(f"{answer['ContentLength']} bytes were announced, {len(content)} came")
    return content


def _range(header: str) -> tuple[int, int]:
    """First byte and size of the whole object, from a Content-Range header."""
    match = re.fullmatch(r"bytes (\d+)-\d*/(\d+)", header)
    if not match:
        raise _DamagedBodyError(f"unreadable Content-Range {header!r}")
    return int(match[1]), int(match[2])


def _request(operation: str, uri: str, call: Callable[[Any], T]) -> T:
    """Makes one request, again while that can help.

    Raises:
        MissingObjectError: the server has no such object.
        StorageError: it failed in the end.
    """
    started = time.monotonic()
    failed: Counter[int] = Counter()  # expired credentials and faults of the server have a budget each
    while True:
        try:
            return call(_client())
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            urllib3.exceptions.HTTPError,
            ConnectionError,
            _DamagedBodyError,
        ) as error:
            fault = _diagnose(error, uri)
            failed[fault.attempts] += 1
            number = failed.total()
            if failed[fault.attempts] >= fault.attempts:
                tried = f" after {number} attempts in {time.monotonic() - started:.0f} s" if number > 1 else ""
                raise fault.kind(f"{uri}: {operation} failed{tried}: {fault.reason}; {fault.remedy}") from error
            if fault.is_expired:
                _renew_credentials()
            wait = min(BACKOFF_S * 2 ** (number - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1)
            level = logging.WARNING if number >= 3 else logging.INFO
            _logger.log(level, "%s: %s: %s; attempt %d in %.1f s", uri, operation, fault.reason, number + 1, wait)
            time.sleep(wait)


_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_DENIED = ("403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled")
_MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchUpload")
_TRANSIENT = (
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
    "TooManyRequests", "OperationAborted", "BadDigest", "InvalidDigest", "IncompleteBody",
)  # fmt: skip


def _diagnose(error: Exception, uri: str) -> _Fault:
    if isinstance(error, botocore.exceptions.ClientError):
        return _diagnose_answer(error, uri)
    if isinstance(error, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError):
        remedy = "set them up for boto3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role"
        return _Fault("no credentials were found", remedy)
    if isinstance(error, botocore.exceptions.CredentialRetrievalError | botocore.exceptions.TokenRetrievalError):
        remedy = "renew the credentials, e.g. with `aws sso login`"
        return _Fault(str(error), remedy, attempts=CREDENTIAL_ATTEMPTS, is_expired=True)
    if isinstance(error, botocore.exceptions.ParamValidationError | botocore.exceptions.InvalidConfigError):
        return _Fault(str(error).replace("\n", " "), "correct the URI or the configuration of boto3")
    reason = str(error) or type(error).__name__
    remedy = "check the network and AWS_ENDPOINT_URL, then run the same command again"
    return _Fault(reason, remedy, attempts=ATTEMPTS)


def _diagnose_answer(error: botocore.exceptions.ClientError, uri: str) -> _Fault:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{code or status} {message}".strip()
    if code == "InvalidRange" or status == 416:
        return _Fault("it is empty", "", kind=_EmptyObjectError)
    if code == "PreconditionFailed" or status == 412:
        return _Fault("it was replaced", "", kind=_ChangedError)
    if code == "NoSuchBucket":
        return _Fault(f"there is no bucket {split_uri(uri)[0]!r}", "check its name, the region and AWS_ENDPOINT_URL")
    if code in _MISSING or status == 404:
        return _Fault("there is no such object", "check the URI", kind=MissingObjectError)
    if code in _EXPIRED:
        remedy = "renew them, e.g. with `aws sso login`, and run the same command again"
        return _Fault(f"the credentials have expired ({code})", remedy, CREDENTIAL_ATTEMPTS, is_expired=True)
    if code == "RequestTimeTooSkewed":
        return _Fault("this machine's clock differs too much from the server's", "set it, e.g. with NTP")
    if code in _DENIED or status == 403:
        remedy = (
            "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there "
            "(`aws sts get-caller-identity` shows whose they are)"
        )
        return _Fault(f"access denied ({said})", remedy)
    if code in _TRANSIENT or status >= 500 or status == 429:
        return _Fault(said, "the server stays overloaded or broken: try again later", attempts=ATTEMPTS)
    return _Fault(said, "see the server's documentation of this code")


class _Session:
    """The client of this process, and how often its credentials were read anew."""

    lock = threading.Lock()
    generation = 0


@lru_cache(maxsize=1)
def _client_of(generation: int) -> Any:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},  # `_request` retries, bodies included, which boto3 does not
        max_pool_connections=2 * THREADS,
        # Servers other than Amazon's answer unknown checksum headers with errors, or a range with the whole's checksum.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.Session().client("s3", config=config)


def _client() -> Any:
    with _Session.lock:  # making a client is not thread-safe, using it is
        return _client_of(_Session.generation)


def _renew_credentials() -> None:
    """Has the next request ask boto3's chain again, which reads files and environment once."""
    with _Session.lock:
        _Session.generation += 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
