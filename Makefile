# Everything a newcomer needs: `make quickstart`, `make test`, `make check`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
WRK    ?= wrk
# outside the repository: the peers' pins contradict ours
BENCH_PEERS ?= $(HOME)/.cache/manta-bench/serving
BENCH_TRAINING_PEERS ?= $(HOME)/.cache/manta-bench/training
# `make test-core`: one environment for each pair of Python and torch; older torches want an older setuptools
CORE_ENVS ?= $(HOME)/.cache/manta-core
CORE      ?= tests/unit
TORCH     ?=

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-soak test-core check format docs bench-data bench-serving bench-training bench-compress bench-cluster gpu-evidence clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Manta needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools wheel

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Create .venv with the pinned set

quickstart: $(VENV)/.installed ## Digits from raw data to a live endpoint
	$(BIN)/manta run configs/quickstart.yaml $(ARGS)

test: $(VENV)/.installed-dev ## Run the whole test suite
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev ## Run the long faults
	$(BIN)/python -m pytest -m slow $(ARGS)

test-soak: $(VENV)/.installed-dev ## Run what is too long for every change
	$(BIN)/python -m pytest -m soak $(ARGS)

test-core: ## Unit tests on another Python or torch: PYTHON=python3.12 TORCH=2.11.0
	@set -e; env="$(CORE_ENVS)/$$($(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')$(TORCH:%=-torch%)"; \
	if [ ! -e "$$env/.installed" ] || [ pyproject.toml -nt "$$env/.installed" ] || [ constraints.txt -nt "$$env/.installed" ]; then \
		[ -x "$$env/bin/python" ] || $(PYTHON) -m venv "$$env"; \
		sed $(if $(TORCH),-e 's/^torch==.*/torch==$(TORCH)/' -e '/^setuptools==/d') -e '' constraints.txt > "$$env/constraints.txt"; \
		"$$env/bin/pip" install --quiet --constraint "$$env/constraints.txt" pip setuptools wheel; \
		"$$env/bin/pip" install --quiet --constraint "$$env/constraints.txt" --editable '.[dev]'; \
		touch "$$env/.installed"; \
	fi; \
	"$$env/bin/python" -m pytest $(CORE) $(ARGS)

check: $(VENV)/.installed-dev ## Format, lint, types, import contracts, dead code, docs-fresh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/dead_code.py
	$(BIN)/python -m docs.generate --check

format: $(VENV)/.installed-dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev ## Write the generated reference pages
	$(BIN)/python -m docs.generate

$(BENCH_PEERS)/.installed:
	$(PYTHON) -m venv --clear $(BENCH_PEERS)
	$(BENCH_PEERS)/bin/pip install --quiet mlserver==1.7.1 litserve==0.2.19 onnxruntime
	@touch $@

bench-data: $(VENV)/.installed-dev ## Quality report, prepare and reads beside pandas, scikit-learn and torch
	$(BIN)/python -m benchmarks.data.run $(ARGS)

$(BENCH_TRAINING_PEERS)/.installed:
	$(PYTHON) -m venv --clear $(BENCH_TRAINING_PEERS)
	$(BENCH_TRAINING_PEERS)/bin/pip install --quiet --constraint constraints.txt torch numpy
	$(BENCH_TRAINING_PEERS)/bin/pip install --quiet accelerate==1.14.0 lightning==2.6.5
	@touch $@

bench-training: $(VENV)/.installed-dev $(BENCH_TRAINING_PEERS)/.installed ## The loop on a CPU beside hand-written ones, Accelerate and Lightning
	$(BIN)/python -m benchmarks.training_cpu.run --peers-python $(BENCH_TRAINING_PEERS)/bin/python $(ARGS)

bench-serving: $(VENV)/.installed-dev $(BENCH_PEERS)/.installed ## Requests per second beside other servers; needs wrk
	@command -v $(WRK) >/dev/null || { echo "wrk is not installed; set WRK=/path/to/wrk" >&2; exit 3; }
	$(BIN)/python -m benchmarks.serving.run --wrk $(WRK) --peers $(BENCH_PEERS) $(ARGS)

bench-cluster: $(VENV)/.installed-dev ## The scheduler in a simulation: decision time, use, waiting, beside FIFO and start-at-once
	$(BIN)/python -m benchmarks.cluster.run $(ARGS)

bench-compress: $(VENV)/.installed-dev ## Compression: speed, size and accuracy, in pieces of at most 5 minutes
	$(BIN)/python -m benchmarks.compress.run $(ARGS)

gpu-evidence: $(VENV)/.installed-dev ## Everything that only a GPU can prove, in 8 minutes
	$(BIN)/python -m benchmarks.gpu $(ARGS)

clean: ## Remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
