"""What `ray up` would ask AWS for with cluster/gpu.yaml.

The account is moto's, made ready by cluster/iam/make-profiles.sh itself; Ray's own code bootstraps, starts the head and
lets its autoscaler start the workers. What Ray would run on the machines over SSH is recorded and never run.
"""

import copy
import fnmatch
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws import config as ray_aws
from ray.autoscaler._private.aws import node_provider as ray_aws_nodes
from ray.autoscaler._private.commands import get_or_create_head_node
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

from tests.aws_server import aws_server
from tests.cluster_files import BUCKET, CLUSTER, RANGE, ROOT, Config, as_list, docker_variables, filled

REGION, ZONE = "us-west-2", "us-west-2a"
IMAGE, OTHER_IMAGE = "ami-0d11a000000000001", "ami-0d11a000000000002"
TYPES = {"head": "m7i.2xlarge", "worker-1gpu": "g6.xlarge", "worker-4gpu": "g6.12xlarge"}
GPUS = {"head": 0, "worker-1gpu": 1, "worker-4gpu": 4}


@dataclass
class Started:
    """A node: what EC2 was asked for, and what it has since."""

    request: Config
    instance: Config

    def facts(self) -> dict[str, Any]:
        instance = self.instance
        return {
            "instance type": instance["InstanceType"],
            "profile": instance.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2],
            "market": instance.get("InstanceLifecycle", "on demand"),
            "image": instance["ImageId"],
            "zone": instance["Placement"]["AvailabilityZone"],
            "groups": [group["GroupName"] for group in instance["SecurityGroups"]],
            "metadata": self.request.get("MetadataOptions", {}).get("HttpTokens"),
            "disk encrypted": [disk["Ebs"]["Encrypted"] for disk in self.request.get("BlockDeviceMappings", [])],
            "cluster": {tag["Key"]: tag["Value"] for tag in instance["Tags"]}["ray-cluster-name"],
        }


@dataclass
class Account:
    """Moto's account, as a user and as Ray work on it."""

    folder: Path
    requests: list[Config] = field(default_factory=list)
    operations: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ec2 = boto3.client("ec2", region_name=REGION)
        self.iam = boto3.client("iam", region_name=REGION)

    def prepare(self, config: Config) -> str:
        """Runs make-profiles.sh; gives what it printed.

        Raises:
            RuntimeError: it refused.
        """
        file = self.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [str(CLUSTER / "iam" / "make-profiles.sh"), str(file)]
        done = subprocess.run(
            command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def bootstrap(self, config: Config) -> Config:
        """What `ray up` makes of a file before it starts anything."""
        provider = ray_aws_nodes.AWSNodeProvider
        config = provider.fillout_available_node_types_resources(prepare_config(copy.deepcopy(config)))
        validate_config(config)
        return provider.bootstrap_config(config)

    def provider(self, config: Config) -> ray_aws_nodes.AWSNodeProvider:
        """Ray's, with its requests recorded."""
        provider = ray_aws_nodes.AWSNodeProvider(config["provider"], config["cluster_name"])
        resources: list[Any] = [provider.ec2, provider.ec2_fail_fast]
        for resource in resources:
            events = resource.meta.client.meta.events
            events.register("provide-client-params.ec2.RunInstances", self._record_request, unique_id="requests")
            events.register("before-call.ec2", self._record_operation, unique_id="operations")
        return provider

    def _record_request(self, params: Config, **_: Any) -> None:
        self.requests.append(copy.deepcopy(params))

    def _record_operation(self, model: Any, **_: Any) -> None:
        self.operations.add(model.name)

    def start(self, config: Config) -> dict[str, Started]:
        """The head as `ray up` starts it, and a node of each other type as the head's autoscaler does."""
        self.clean()
        config = self.bootstrap(config)
        provider = self.provider(config)
        head = config["available_node_types"][config["head_node_type"]]
        tags = {
            TAG_RAY_NODE_KIND: "head",
            TAG_RAY_USER_NODE_TYPE: config["head_node_type"],
            TAG_RAY_NODE_NAME: "ray-mura-head",
        }
        provider.create_node({**config["head_node"], **head["node_config"]}, tags, 1)
        self.operations.clear()
        start_workers(provider, config)
        nodes = {}
        for instance in self.instances():
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            if instance["State"]["Name"] == "running":
                request = next(one for one in self.requests if asked_for(one, tags[TAG_RAY_USER_NODE_TYPE]))
                nodes[tags[TAG_RAY_USER_NODE_TYPE]] = Started(request, instance)
        provider.terminate_nodes([node.instance["InstanceId"] for node in nodes.values()])
        return nodes

    def clean(self) -> None:
        """Ends all instances and forgets all requests."""
        self.requests.clear()
        if found := self.instances():
            self.ec2.terminate_instances(InstanceIds=[one["InstanceId"] for one in found])

    def instances(self) -> list[Config]:
        pages = self.ec2.describe_instances()["Reservations"]
        return [dict(one) for page in pages for one in page.get("Instances", [])]

    def rules(self, name: str = "mura") -> set[tuple[str, int | None, str]]:
        """Who may connect: protocol, port and origin, where the group itself is `members`."""
        groups = self.ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]
        rules = set()
        for rule in (rule for group in groups for rule in group["IpPermissions"]):
            origins = [one["CidrIp"] for one in rule["IpRanges"]] + [one["CidrIpv6"] for one in rule["Ipv6Ranges"]]
            origins += ["members" if pair["GroupId"] == groups[0]["GroupId"] else pair["GroupId"]
                        for pair in rule["UserIdGroupPairs"]]  # fmt: skip
            rules |= {(rule["IpProtocol"], rule.get("FromPort"), origin) for origin in origins}
        return rules

    def policies(self, profile: str) -> set[str]:
        """The policies of a profile's role."""
        (role,) = self.iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        assert self.iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"] == []
        return set(self.iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"])


def asked_for(request: Config, node_type: str) -> bool:
    return {"Key": TAG_RAY_USER_NODE_TYPE, "Value": node_type} in request["TagSpecifications"][0]["Tags"]


def on_head(config: Config) -> Config:
    """The file as it lies on the head, whose autoscaler starts the workers."""
    config = copy.deepcopy(config)
    config.pop("head_node", None)
    return config


def start_workers(provider: ray_aws_nodes.AWSNodeProvider, config: Config) -> None:
    """Has the autoscaler (v2) start a node of each type but the head's."""
    autoscaling = AutoscalingConfig(on_head(config), skip_content_hash=True)
    reader: Any = SimpleNamespace(get_cached_autoscaling_config=lambda: autoscaling)
    adapter = NodeProviderAdapter(provider, reader)
    types = set(config["available_node_types"]) - {config["head_node_type"]}
    adapter.launch(dict.fromkeys(types, 1), "request")
    deadline = time.monotonic() + 30
    while not types <= {node.node_type for node in adapter.get_non_terminated().values()}:
        for error in adapter.poll_errors():
            raise RuntimeError(f"{error}: {error.__cause__}")
        assert time.monotonic() < deadline
        time.sleep(0.02)


def violations(account: Account, config: Config) -> list[str]:
    """What is not as it must be: nothing for cluster/gpu.yaml, something for each way to spoil it."""
    try:
        account.prepare(config)
        nodes = account.start(config)
    except (RuntimeError, ValueError, click.ClickException, jsonschema.ValidationError) as error:
        return [f"refused: {error}"]
    found = [f"{name} was started, which is not expected" for name in nodes if name not in TYPES]
    for name, instance_type in TYPES.items():
        if name not in nodes:
            found.append(f"{name} is missing")
            continue
        want = {
            "instance type": instance_type,
            "profile": "mura-head" if name == "head" else "mura-worker",
            "market": "on demand" if name == "head" else "spot",
            "image": IMAGE,
            "zone": ZONE,
            "groups": ["mura"],
            "metadata": "required",
            "disk encrypted": [True],
            "cluster": "mura",
        }
        found += [
            f"{name}: {fact} is {nodes[name].facts()[fact]}" for fact in want if nodes[name].facts()[fact] != want[fact]
        ]
    if len({node.request["SubnetId"] for node in nodes.values()}) != 1:
        found.append("zone: several subnets")
    return found + wrong_rules(account)


def wrong_rules(account: Account) -> list[str]:
    want, have = {("tcp", 22, RANGE), ("-1", None, "members")}, account.rules()
    return [f"rule missing: {rule}" for rule in want - have] + [f"rule too many: {rule}" for rule in have - want]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("aws")
    names = {IMAGE: filled()["metadata"]["image"], OTHER_IMAGE: "another image"}
    base = {
        "owner_id": "898082745236",
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "root_device_type": "ebs",
    }
    images = [{"ami_id": image, "name": name, **base} for image, name in names.items()]
    with aws_server(folder, images) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        (folder / "home" / ".ray").mkdir()
        (folder / "home" / ".ray" / "auth_token").write_text("0" * 64)
        types = ray_aws_nodes.list_ec2_instances(REGION)  # seconds each time
        patch.setattr(ray_aws_nodes, "list_ec2_instances", lambda *_: types)
        patch.setattr(ray_aws_nodes, "TAG_BATCH_DELAY", 0)
        patch.setattr(ray_aws, "time", SimpleNamespace(sleep=lambda _: None))  # it waits for IAM
        patch.chdir(ROOT)
        yield Account(folder)


@pytest.mark.slow
def test_what_is_asked_for(account: Account) -> None:
    assert violations(account, filled()) == []


@pytest.mark.slow
def test_nodes_ask_for_what_the_file_says(account: Account) -> None:
    config = filled()
    account.prepare(config)
    nodes = account.start(config)
    for name, node_type in config["available_node_types"].items():
        asked = nodes[name].request
        asked["LaunchTemplate"].pop("Version")  # Ray's addition: the template's default
        assert {key: asked[key] for key in node_type["node_config"]} == node_type["node_config"]


@pytest.mark.slow
def test_resources(account: Account) -> None:
    config = filled()
    account.prepare(config)
    types = account.bootstrap(config)["available_node_types"]
    assert {name: types[name]["resources"].get("GPU", 0) for name in types} == GPUS
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0, "driver": 64}
    assert not any("driver" in types[name]["resources"] for name in types if name != "head")


def node(config: Config, name: str) -> Config:
    return config["available_node_types"][name]["node_config"]


def ssh_rule(config: Config) -> Config:
    return config["provider"]["security_group"]["IpPermissions"][0]


def more_rules(config: Config, **rule: Any) -> None:
    config["provider"]["security_group"]["IpPermissions"].append({**ssh_rule(config), **rule})


SPOILED: dict[str, tuple[Callable[[Config], Any], str]] = {
    "type removed": (lambda c: c["available_node_types"].pop("worker-4gpu"), "worker-4gpu is missing"),
    "type added": (
        lambda c: c["available_node_types"].update(extra=c["available_node_types"]["worker-1gpu"]),
        "extra was started",
    ),
    "another instance type": (lambda c: node(c, "worker-1gpu").update(InstanceType="g5.xlarge"), "instance type is g5"),
    "unknown instance type": (lambda c: node(c, "head").update(InstanceType="m99.large"), "refused: Instance type m99"),
    "head without profile": (lambda c: node(c, "head").pop("IamInstanceProfile"), "head: profile is ray-autoscaler-v1"),
    "worker without profile": (lambda c: node(c, "worker-1gpu").pop("IamInstanceProfile"), "worker-1gpu: profile is"),
    "worker with the head's profile": (
        lambda c: node(c, "worker-4gpu").update(IamInstanceProfile={"Name": "mura-head"}),
        "worker-4gpu: profile is mura-head",
    ),
    "head at spot prices": (
        lambda c: node(c, "head").update(InstanceMarketOptions={"MarketType": "spot"}),
        "head: market is spot",
    ),
    "worker on demand": (lambda c: node(c, "worker-4gpu").pop("InstanceMarketOptions"), "market is on demand"),
    "SSH rule removed": (lambda c: c["provider"]["security_group"].update(IpPermissions=[]), "missing: ('tcp', 22"),
    "SSH from elsewhere": (lambda c: ssh_rule(c).update(IpRanges=[{"CidrIp": "198.51.100.0/24"}]), "198.51.100.0/24"),
    "SSH from everywhere": (lambda c: ssh_rule(c).update(IpRanges=[{"CidrIp": "0.0.0.0/0"}]), "whole internet"),
    "SSH from everywhere in two halves": (
        lambda c: ssh_rule(c).update(IpRanges=[{"CidrIp": "0.0.0.0/1"}, {"CidrIp": "128.0.0.0/1"}]),
        "whole internet",
    ),
    "SSH from every IPv6 address": (lambda c: more_rules(c, IpRanges=[], Ipv6Ranges=[{"CidrIpv6": "::/0"}]), "whole"),
    "dashboard opened": (lambda c: more_rules(c, FromPort=8265, ToPort=8265), "rule too many: ('tcp', 8265"),
    "range not filled in": (lambda c: ssh_rule(c).update(IpRanges=[{"CidrIp": "FILL-IN-RANGE"}]), "fill in"),
    "bucket not filled in": (
        lambda c: c["docker"].update(run_options=["--env=MURA_RUNS=s3://FILL-IN-BUCKET/runs"]),
        "fill in",
    ),
    "no template: Ray's own image": (lambda c: node(c, "worker-1gpu").pop("LaunchTemplate"), "worker-1gpu: image is"),
    "image by hand": (lambda c: node(c, "head").update(ImageId=OTHER_IMAGE), f"head: image is {OTHER_IMAGE}"),
    "another image": (lambda c: c["metadata"].update(image="another image"), f"image is {OTHER_IMAGE}"),
    "image that is gone": (lambda c: c["metadata"].update(image="no such image"), "make-profiles.sh: no image"),
    "another zone": (lambda c: c["provider"].update(availability_zone="us-west-2b"), "zone is us-west-2b"),
    "another cluster": (lambda c: c.update(cluster_name="other"), "cluster is other"),
    "old metadata service": (lambda c: node(c, "head").pop("MetadataOptions"), "head: metadata is None"),
    "disk as the image has it": (lambda c: node(c, "worker-1gpu").pop("BlockDeviceMappings"), "disk encrypted is []"),
    "unknown key": (lambda c: c.update(idle_timeout=5), "refused: Additional properties"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "finding"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_found(account: Account, spoil: Callable[[Config], Any], finding: str) -> None:
    config = copy.deepcopy(filled())
    spoil(config)
    found = violations(account, config)
    assert any(finding in violation for violation in found), found


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["members", "ssh"])
def test_a_rule_removed_in_the_account_is_found_and_mended(account: Account, rule: str) -> None:
    account.prepare(filled())
    (group,) = account.ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["mura"]}])[
        "SecurityGroups"
    ]
    removed = [one for one in group["IpPermissions"] if bool(one["UserIdGroupPairs"]) == (rule == "members")]
    account.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=removed)
    assert [text for text in wrong_rules(account) if "missing" in text]
    assert "added" in account.prepare(filled())
    assert wrong_rules(account) == []


@pytest.mark.slow
def test_the_script_changes_nothing_twice(account: Account) -> None:
    account.prepare(filled())
    again = account.prepare(filled())
    assert not re.search(r"made|added|removed|version", again), again


@pytest.mark.slow
def test_without_the_script_nothing_is_started(account: Account) -> None:
    account.prepare(filled())
    account.ec2.delete_launch_template(LaunchTemplateName="mura")
    account.clean()
    with pytest.raises(Exception, match="LaunchTemplate"):
        account.start(filled())
    assert account.requests == []


@pytest.mark.slow
def test_rights(account: Account) -> None:
    account.prepare(filled())
    assert account.policies("mura-head") == {"storage", "launch"}
    assert account.policies("mura-worker") == {"storage"}
    document = account.iam.get_role_policy(RoleName="mura-worker", PolicyName="storage")["PolicyDocument"]
    assert "FILL-IN" not in json.dumps(document)
    locations = [value for name, value in docker_variables(filled()).items() if value.startswith("s3://")]
    for location in locations:
        assert may(document, "s3:GetObject", f"arn:aws:s3:::{location.removeprefix('s3://')}/some/key"), location
    assert may(document, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/runs/x")
    assert may(document, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}")
    assert not may(document, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/MURA-v1.1/train.csv")
    assert not may(document, "s3:GetObject", "arn:aws:s3:::another/runs/x")


@pytest.mark.slow
def test_the_head_may_do_what_its_autoscaler_does(account: Account) -> None:
    account.prepare(filled())
    config = account.bootstrap(filled())
    provider = account.provider(config)
    account.operations.clear()
    start_workers(provider, config)
    nodes = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"})
    provider.set_node_tags(nodes[0], {TAG_RAY_NODE_STATUS: "up-to-date"})
    provider.terminate_nodes(nodes)
    launch = json.loads((CLUSTER / "iam" / "launch.json").read_text())
    allowed = {action for statement in launch["Statement"] for action in as_list(statement["Action"])}
    assert {f"ec2:{operation}" for operation in account.operations} == allowed - {"iam:PassRole"}


def may(document: Any, action: str, resource: str) -> bool:
    return any(
        action in as_list(statement["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
        for statement in document["Statement"]
    )


class Recorder:
    """In the place of `subprocess` under Ray's updater: answers as a fresh machine would, and starts nothing."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self.commands: list[str] = []

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        text = " ".join(command)
        self.commands.append(text)
        started = any("docker run" in earlier for earlier in self.commands)
        answers = {
            ".Config.Env": b'["HOME=/home/ray"]',
            "printenv HOME": b"/home/ray",
            "command -v docker": b"/usr/bin/docker",
            ".State.Running": b"true" if started else b"",
        }
        return next((answer for part, answer in answers.items() if part in text), b"")

    def check_call(self, command: list[str], *_: Any, **__: Any) -> None:
        self.check_output(command)


@pytest.mark.slow
def test_what_would_run_on_the_head(account: Account) -> None:
    account.prepare(filled())
    account.clean()
    recorder: Any = Recorder()
    config = account.bootstrap(filled())
    get_or_create_head_node(config, "cluster/gpu.yaml", False, False, True, None, _runner=recorder)
    commands = recorder.commands
    order = ["docker pull", "docker run", "setup-node.sh --venv /home/ray/mura-venv", "ray start --head"]
    places = [next(i for i, command in enumerate(commands) if part in command) for part in order]
    assert places == sorted(places)
    (run,) = [command for command in commands if "docker run" in command]
    for name, value in docker_variables(filled()).items():
        assert f"--env={name}={value}" in run
    for part in (
        "--shm-size=8gb",
        "/mnt/mura-cache:/mnt/mura-cache",
        ":/home/ray/.ray/auth_token",
        filled()["docker"]["image"],
    ):
        assert part in run
    start = commands[places[-1]]
    assert "--dashboard-host=127.0.0.1" in start
    assert '"driver":64' in start
    assert not any("pip install" in command for command in commands)
