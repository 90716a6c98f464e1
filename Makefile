# Everything a person or a machine does with a checkout. `make study` and `make test` need Python >= 3.11 and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: study test test-pipelines bench docs lint types format clean

study: $(VENV)/.installed ## search an architecture for handwritten digits, two minutes on two cores
	$(BIN)/optuna-nas run studies/digits.py

test: $(VENV)/.installed-dev ## run the tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --maxschedchunk 2 -m "not pipeline"

test-pipelines: $(VENV)/.installed-pipelines ## run the tests with other tools: Ray Tune, Lightning, skorch, Hydra, ...
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --maxschedchunk 2 -m pipeline

bench: $(VENV)/.installed-dev ## the short benchmarks, five minutes on one core; figures go to build/bench
	mkdir -p build/bench
	$(BIN)/python studies/benchmarks/supernet.py --small --json build/bench/supernet.json
	$(BIN)/python studies/benchmarks/ghn_speed.py --repeats 2 --json build/bench/ghn_speed.json
	$(BIN)/python studies/benchmarks/training.py --settings "NAS-Bench-201, 3 cells, C = 16" --json build/bench/training.json
	$(BIN)/python studies/benchmarks/overhead.py --sizes 100 1000 --edges 28 --json build/bench/overhead.json
	$(BIN)/python studies/benchmarks/latency.py --cpu-seconds --json build/bench/latency.json
	$(BIN)/python studies/benchmarks/growth.py --repeats 1 --trials 200 1000 --json build/bench/growth.json
	$(BIN)/python studies/benchmarks/tracking.py --trials 100 --seconds 0.02 --stores sqlite --json build/bench/tracking.json

docs: $(VENV)/.installed-docs ## the documentation as a site in build/site; a broken link or a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # with --quiet, warnings would not count
	@echo "Open build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

lint: $(VENV)/.installed-dev ## format, habits, floors, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

types: $(VENV)/.installed-dev ## check types
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and what the tools left
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing optuna_nas and PyTorch into $(VENV); about 3 minutes the first time."
	$(BIN)/python -m pip install --progress-bar on -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing optuna_nas with its development tools into $(VENV); about 3 minutes the first time."
	$(BIN)/python -m pip install --progress-bar on -e ".[dev,benchmark]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-pipelines: pyproject.toml | $(VENV)/.installed-dev
	@echo "Installing the tools that optuna_nas.pipelines has doors for; about a minute."
	$(BIN)/python -m pip install --progress-bar on -e ".[pipelines]"
	@touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed-dev
	@echo "Installing what makes the documentation; half a minute."
	$(BIN)/python -m pip install --progress-bar on -e ".[docs]"
	@touch $@
