# make demo    everything once, on this machine: phantom radiographs to a study answered over HTTP
# make test    the tests          make check   format, lint, types, import rules
# make test-faults  those that lose and regain nodes, some minutes each; `make test` leaves them out
# make serve   the newest ensemble under MURA_RUNS (default: the demo's) behind HTTP on localhost
# Each sets up what it needs first (cluster/setup-node.sh) and is quick when nothing changed.

PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MURA_RUNS ?= $(CURDIR)/demo/runs

.PHONY: demo test test-faults check serve format setup lock clean

setup:
	@cluster/setup-node.sh --dev

demo: setup
	$(PYTHON) -m mura_ray.demo --out demo

# Two files at a time, in the order of their folders: the slow ones are first.
test: setup
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-faults: setup
	$(PYTHON) -m pytest -m faults

check: setup
	ruff format --check .
	ruff check .
	pyright --warnings
	lint-imports

serve: setup
	serve run --address local serve/config.yaml

format: setup
	ruff format .
	ruff check --fix .

# Pins every package, without addresses, so that each node installs the same.
lock: export PKG_CONFIG_PATH := $(CURDIR)/cluster/ffcv-build
lock: setup
	uv pip compile --quiet --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.txt
	uv pip compile --quiet --no-header --no-annotate --no-emit-index-url pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
