# The verbs of the project. `make` alone lists them. Python 3.11 and make are all that must be there.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# LOGS=<folder, file or URL>  FORMAT=<reader>  DAY=<YYYY-MM-DD>  JSON=1  ONLY=<benchmark>  NAME=<study>
NIGHTLY_FLAGS = $(if $(LOGS),--logs "$(LOGS)") $(if $(FORMAT),--format "$(FORMAT)") $(if $(DAY),--day "$(DAY)") $(if $(JSON),--json)

export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help nightly test test-all test-spark test-peers check ui mlflow serve bench study clean setup setup-dev docs tables constraints lint-fix

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

# A stamp per set of packages: the second call installs nothing again. torch first and alone, so that a CPU
# wheel is taken where one is on disk; its exact version is the one in constraints.txt.
$(VENV)/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), sys.version' || \
		{ echo "Talktrack needs Python 3.11 to 3.13; set PYTHON=/path/to/python3.11 and run again."; rm -rf $(VENV); exit 1; }
	@echo "Installing Talktrack into $(VENV) (once; about two minutes) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(VENV)/.base  ## create the virtual environment
setup-dev: $(VENV)/.dev  ## the same with what tests and checks need

nightly: setup  ## run the night in the foreground: logs in, evidence and a registered policy out
	@$(BIN)/talktrack nightly $(NIGHTLY_FLAGS)

test: setup-dev  ## run the test suite (under 15 minutes on 2 cores)
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: setup-dev  ## the suite with the slow tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not spark and not peers"

test-spark: setup-dev  ## build the warehouse on DuckDB and on Spark and compare every table (needs Java 17)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[spark]"
	@$(BIN)/python -m pytest -m spark

test-peers:  ## compare with other libraries, in an environment of its own (dp-accounting wants an older attrs)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@grep -v '^attrs==' constraints.txt > .venv-peers/constraints.txt
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check --constraint .venv-peers/constraints.txt --editable ".[dev,peers]"
	@.venv-peers/bin/python -m pytest -m peers || test $$? -eq 5

check: setup-dev  ## format, lint, types, SQL style, Dagster definitions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/sqlfluff lint --processes 2 transforms/models
	@$(BIN)/talktrack check

lint-fix: setup-dev  ## format and fix what can be fixed
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/sqlfluff fix transforms/models

ui: setup  ## open Dagster on http://127.0.0.1:3000 with the state of `make nightly`
	@$(BIN)/talktrack ui $(if $(LOGS),--logs "$(LOGS)") $(if $(FORMAT),--format "$(FORMAT)")

mlflow: setup  ## open MLflow on http://127.0.0.1:5000
	@$(BIN)/talktrack mlflow

serve: setup  ## serve the champion (or ALIAS=challenger) on http://127.0.0.1:8080 with MLflow's scoring server
	@$(BIN)/talktrack serve $(if $(ALIAS),--alias $(ALIAS)) $(if $(FORMAT),--format "$(FORMAT)")

bench: setup-dev  ## run the benchmarks (one: make bench ONLY=ingest)
	@$(BIN)/python -m tests.benchmarks $(ONLY)

study: setup-dev  ## run a study on known truth: make study NAME=storefront
	@$(BIN)/python -m tests.studies $(NAME)

docs: setup  ## write the warehouse's documentation (models, columns, lineage; no data) as one HTML file
	@cd transforms && DBT_PROFILES_DIR=. TALKTRACK_WAREHOUSE=:memory: DBT_LOG_PATH=target/docs ../$(BIN)/dbt --quiet docs generate \
		--static --target-path target/docs && echo "transforms/target/docs/static_index.html"

tables: setup-dev  ## write the tables of README.md from the results of bench and study
	@$(BIN)/python -m tests.benchmarks.tables

constraints:  ## write constraints.txt again from the newest versions that resolve
	@rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	@.venv-constraints/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@.venv-constraints/bin/python -m pip install -qq --disable-pip-version-check --editable ".[dev,spark,llm]"
	@{ sed -n '/^#/p' constraints.txt; .venv-constraints/bin/python -m pip freeze --exclude-editable --exclude talktrack | sed 's/+cpu$$//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt && rm -rf .venv-constraints

clean:  ## remove the virtual environment and caches; state in .talktrack stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis transforms/target transforms/logs *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +
