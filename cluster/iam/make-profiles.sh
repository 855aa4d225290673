#!/usr/bin/env bash
# Makes in an AWS account what a cluster file names: roles and instance profiles of head and workers, with the least rights;
# the security group; the launch template that holds this group and the machine image. Safe to run again: it changes what
# differs and says so. Needs the AWS CLI with an administrator's credentials, and this project's environment (`make setup`).
#
#   cluster/iam/make-profiles.sh [CLUSTER.yaml]    (default: cluster/gpu.yaml)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
file=${1:-$here/../gpu.yaml}
python=${PYTHON:-$here/../../.venv/bin/python}

say() { echo "[aws] $*"; }
fail() { echo "make-profiles.sh: $*" >&2; exit 1; }

if unfilled=$(grep -n '^[^#]*FILL-IN-[A-Z]' "$file"); then fail "fill in these lines of $file first:"$'\n'"$unfilled"; fi
eval "$("$python" - "$file" <<'PYTHON'
import ipaddress, json, re, shlex, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
options = " ".join(config["docker"]["run_options"])
buckets = set(re.findall(r"--env=MURA_(?:SOURCE|DATA|RUNS)=s3://([^/\s]+)/", options))
if len(buckets) != 1:
    sys.exit(f"MURA_SOURCE, MURA_DATA and MURA_RUNS must lie in one bucket, not in {sorted(buckets)}")
rules = config["provider"]["security_group"]["IpPermissions"]
for allowed in (allowed for rule in rules for allowed in rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])):
    network = ipaddress.ip_network(allowed.get("CidrIp") or allowed.get("CidrIpv6"))
    if network.prefixlen < 8:
        sys.exit(f"{network} is (almost) the whole internet: name the addresses that you connect from")
values = {"bucket": buckets.pop(), "region": config["provider"]["region"], "rules": json.dumps(rules),
          "group_name": config["provider"]["security_group"]["GroupName"], "image_name": config["metadata"]["image"]}
print("".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + "read_file=1")
PYTHON
)"
[ -n "${read_file:-}" ] || fail "cannot use $file, see above"
export AWS_DEFAULT_REGION=$region AWS_PAGER=
template=mura
say "account $(aws sts get-caller-identity --query Account --output text), region $region, bucket $bucket"

put_policy() {  # role, file: `put` replaces what was there
    aws iam put-role-policy --role-name "$1" --policy-name "${2%.json}" \
        --policy-document "$(sed "s/FILL-IN-BUCKET/$bucket/g" "$here/$2")"
    say "role $1: policy $2"
}

for role in mura-head mura-worker; do
    if ! aws iam get-role --role-name "$role" >/dev/null 2>&1; then
        aws iam create-role --role-name "$role" --assume-role-policy-document "$(cat "$here/trust.json")" >/dev/null
        say "made role $role"
    fi
    put_policy "$role" storage.json
    if ! aws iam get-instance-profile --instance-profile-name "$role" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
        say "made instance profile $role"
    fi
    held=$(aws iam get-instance-profile --instance-profile-name "$role" --query 'InstanceProfile.Roles[].RoleName' --output text)
    if [ "$held" != "$role" ]; then
        aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
        say "instance profile $role: role $role"
    fi
done
put_policy mura-head launch.json

# An account's first spot request needs it, and the head may not make it.
if [ -z "$(aws iam list-roles --path-prefix /aws-service-role/spot.amazonaws.com/ --query 'Roles[].RoleName' --output text)" ]; then
    aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null
    say "made the service-linked role for spot instances"
fi

vpc=$(aws ec2 describe-vpcs --filters '[{"Name": "is-default", "Values": ["true"]}]' --query 'Vpcs[].VpcId' --output text)
[ -n "$vpc" ] || fail "$region has no default VPC: aws ec2 create-default-vpc --region $region"
group_filter="[{\"Name\": \"group-name\", \"Values\": [\"$group_name\"]}, {\"Name\": \"vpc-id\", \"Values\": [\"$vpc\"]}]"
find_group() { aws ec2 describe-security-groups --filters "$group_filter" --query "SecurityGroups[].$1" --output "$2"; }
group=$(find_group GroupId text)
if [ -z "$group" ]; then
    group=$(aws ec2 create-security-group --group-name "$group_name" --vpc-id "$vpc" --query GroupId --output text \
        --description "mura_ray: SSH from the addresses of the cluster file, everything among its members")
    say "made security group $group_name ($group)"
fi
# The rules that are too many and those that are missing, each as JSON, on two lines.
changes=$(HAVE=$(find_group 'IpPermissions[]' json) "$python" - "$rules" "$group" <<'PYTHON'
import json, os, sys
def single(rules):
    for rule in rules:
        base = {key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in rule}
        if base["IpProtocol"] == "-1":
            base = {"IpProtocol": "-1"}
        for kind, field in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("UserIdGroupPairs", "GroupId"),
                            ("PrefixListIds", "PrefixListId")):
            for source in rule.get(kind, []):
                yield json.dumps({**base, kind: [{field: source[field]}]}, sort_keys=True)
members = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": sys.argv[2]}]}
have, want = set(single(json.loads(os.environ["HAVE"]))), set(single([*json.loads(sys.argv[1]), members]))
for rules in (have - want, want - have):
    print(json.dumps([json.loads(rule) for rule in sorted(rules)]))
PYTHON
)
surplus=${changes%%$'\n'*} missing=${changes##*$'\n'}
if [ "$surplus" != "[]" ]; then
    aws ec2 revoke-security-group-ingress --group-id "$group" --ip-permissions "$surplus" >/dev/null
    say "security group $group_name: removed $surplus"
fi
if [ "$missing" != "[]" ]; then
    aws ec2 authorize-security-group-ingress --group-id "$group" --ip-permissions "$missing" >/dev/null
    say "security group $group_name: added $missing"
fi

image=$(aws ec2 describe-images --owners amazon --include-deprecated --query 'Images[].ImageId' --output text \
    --filters "[{\"Name\": \"name\", \"Values\": [\"$image_name\"]}]")
[[ $image =~ ^ami-[0-9a-f]+$ ]] || fail "no image '$image_name' in $region: $file says how to list those there are"
data="{\"ImageId\": \"$image\", \"SecurityGroupIds\": [\"$group\"]}"
if ! held=$(aws ec2 describe-launch-template-versions --launch-template-name "$template" --versions '$Default' --output text \
    --query 'LaunchTemplateVersions[0].LaunchTemplateData.[ImageId, SecurityGroupIds[0]]' 2>/dev/null); then
    aws ec2 create-launch-template --launch-template-name "$template" --launch-template-data "$data" >/dev/null
    say "made launch template $template: $data"
elif [ "$held" != "$image"$'\t'"$group" ]; then
    version=$(aws ec2 create-launch-template-version --launch-template-name "$template" --launch-template-data "$data" \
        --query LaunchTemplateVersion.VersionNumber --output text)
    aws ec2 modify-launch-template --launch-template-name "$template" --default-version "$version" >/dev/null
    say "launch template $template, version $version: $data"
fi
say "ready: ray up $file"
