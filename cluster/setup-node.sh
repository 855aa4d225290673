#!/usr/bin/env bash
# Sets up a machine for mura_ray: system packages, a Python environment, the pinned Python packages, the project itself.
# Runs on a workstation (through make), in CI and on every cluster node. Safe to run again; quick when nothing changed.
#
#   cluster/setup-node.sh [--dev] [--venv DIR] [--python PYTHON]
#
#   --dev      also the linters, the type checker, the test runner and, on Debian, a browser for the tests
#   --venv     where the environment goes (default: .venv beside this repository's pyproject.toml)
#   --python   the interpreter that makes it (default: python3.11)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
python=python3.11
requirements=requirements.txt
while [ $# -gt 0 ]; do
    case $1 in
        --dev) requirements=requirements-dev.txt; shift ;;
        --venv) venv=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        *) echo "setup-node.sh: unknown argument '$1' (see the head of this file)" >&2; exit 2 ;;
    esac
done

say() { echo "[setup] $*"; }

stamp=$venv/.mura-ray-setup
inputs=("$root/pyproject.toml" "$root/requirements.txt" "$root/requirements-dev.txt" "$0" "$root"/cluster/ffcv-build/opencv4.pc)
fingerprint="$root $requirements $(cat "${inputs[@]}" | sha256sum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ]; then
    exit 0
fi

# FFCV has no wheels: it compiles against OpenCV's core and imgproc and libturbojpeg. Ubuntu names the last differently.
installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
missing=()
for package in g++ pkg-config libopencv-core-dev libopencv-imgproc-dev; do
    installed "$package" || missing+=("$package")
done
if ! installed libturbojpeg0-dev && ! installed libturbojpeg-dev; then missing+=(libturbojpeg); fi
# WeasyPrint lays the evaluation's PDF out with Pango, and needs a font.
for package in libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core; do
    installed "$package" || missing+=("$package")
done
# ensurepip and Python.h come with the interpreter, or (Debian's own python3.11) in two more packages.
"$python" -c 'import ensurepip' 2>/dev/null || missing+=("$python-venv")
"$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
    2>/dev/null || missing+=("$python-dev")
# The tests make DICOM files with dcmtk, and compare with it; dicom3tools judges what we write.
if [ $requirements = requirements-dev.txt ]; then
    for package in dcmtk dicom3tools; do installed "$package" || missing+=("$package"); done
fi
# The tests' own hosts (tests/multihost) are made by root alone. Their SSH server must not become this machine's.
if [ $requirements = requirements-dev.txt ] && [ "$(id -u)" = 0 ]; then
    for package in iproute2 openssh-client rsync; do installed "$package" || missing+=("$package"); done
    if ! installed openssh-server; then
        missing+=(openssh-server)
        say "openssh-server is for the tests: its service stays off (systemctl unmask ssh.service ssh.socket)"
        mkdir -p /etc/systemd/system
        ln -sf /dev/null /etc/systemd/system/ssh.service
        ln -sf /dev/null /etc/systemd/system/ssh.socket
    fi
fi
# The browser of tests/browser. Ubuntu has Chromium as a snap only: there those tests skip where no Chrome is installed.
if [ $requirements = requirements-dev.txt ] && grep -qx ID=debian /etc/os-release \
    && ! command -v chromium google-chrome google-chrome-stable >/dev/null; then
    missing+=(chromium fonts-liberation)
fi
if [ ${#missing[@]} -gt 0 ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    say "installing system packages: ${missing[*]}"
    $sudo apt-get update -qq
    if apt-cache show libturbojpeg0-dev >/dev/null 2>&1; then turbojpeg=libturbojpeg0-dev; else turbojpeg=libturbojpeg-dev; fi
    # RUNLEVEL=1: no package starts a service
    $sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]/%libturbojpeg/$turbojpeg}" >/dev/null
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making the Python environment $venv"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -c 'import uv' 2>/dev/null || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
say "installing the Python packages of $requirements (some 3 GB the first time)"
# --no-deps: the list is complete, and FFCV's own requirement of opencv-python is met by the headless build.
# --compile-bytecode: Ray starts a process a worker, and each would compile torch's sources again or wait for another.
PKG_CONFIG_PATH=$root/cluster/ffcv-build "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" --no-deps -r "$root/$requirements"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable "$root"
echo "$fingerprint" >"$stamp"
say "ready: $venv"
