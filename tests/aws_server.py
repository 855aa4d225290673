"""An AWS account on loopback: moto's EC2, IAM and S3 over HTTP, and an `aws` command for shell scripts on it.

The command knows what cluster/iam's script needs of the real one: options by name, JSON values, --query, --output text.
"""

import json
import os
import socketserver
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import boto3
import jmespath
from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

from tests.s3_server import environment, s3_server

COMMAND = r"""#!/usr/bin/env bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\0' "$AWS_DEFAULT_REGION" "$@" '' >&3
IFS= read -r status <&3
if [ "$status" = 0 ]; then cat <&3; else cat <&3 >&2; fi
exit "$status"
"""


@contextmanager
def aws_server(folder: Path, images: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Gives the environment variables that have boto3 and the `aws` command use the account.

    Args:
        folder: for the log, the home folder and the command.
        images: machine images of Amazon's, as moto describes them.
    """
    (folder / "images.json").write_text(json.dumps(images))
    (folder / "home").mkdir()
    settings = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_AMIS_PATH": str(folder / "images.json")}
    with ExitStack() as stack:
        with mock.patch.dict(os.environ, settings):
            url = stack.enter_context(s3_server(folder / "moto.log"))
        stack.enter_context(_command(folder / "bin"))
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        yield environment(url) | {"PATH": path, "HOME": str(folder / "home")}


@contextmanager
def _command(folder: Path) -> Iterator[None]:
    """Puts `aws` into a folder: it asks this process, which need not import boto3 for every call."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Call) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        folder.mkdir()
        command = folder / "aws"
        command.write_text(COMMAND.replace("{port}", str(server.server_address[1])))
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        yield
        server.shutdown()
        thread.join()


class _Call(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        sent = b""
        while not sent.endswith(b"\0\0"):
            sent += self.connection.recv(65536)
        region, service, operation, *options = sent.decode().split("\0")[:-2]
        try:
            answer = f"0\n{call(region, service, operation, options)}"
        except (BotoCoreError, ClientError, KeyError, ValueError) as error:
            answer = f"254\n{error!r}\n"
        self.wfile.write(answer.encode())


def call(region: str, service: str, operation: str, options: list[str]) -> str:
    """What `aws SERVICE OPERATION OPTIONS` prints."""
    client = boto3.client(service, region_name=region)  # pyright: ignore[reportCallIssue, reportArgumentType]
    method = operation.replace("-", "_")
    shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method]).input_shape
    members = {xform_name(name, "-"): (name, member) for name, member in shape.members.items()} if shape else {}
    given: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            given[word[2:]] = []
        else:
            given[list(given)[-1]].append(word)
    query, output = given.pop("query", ["@"]), given.pop("output", ["json"])
    arguments = {members[option][0]: _value(members[option][1], words) for option, words in given.items()}
    answer = getattr(client, method)(**arguments)
    answer.pop("ResponseMetadata", None)
    chosen = jmespath.search(query[0], answer)
    return _text(chosen) + "\n" if output == ["text"] else json.dumps(chosen, default=str)


def _value(shape: Any, words: list[str]) -> Any:
    if shape.type_name == "boolean":
        return True
    if words[0][:1] in "[{" and shape.type_name != "string":
        return json.loads(words[0])
    return words if shape.type_name == "list" else words[0]


def _text(value: Any) -> str:
    return "\t".join(map(_text, value)) if isinstance(value, list) else str(value)
