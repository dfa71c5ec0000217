# Every target makes .venv by itself when it is missing or older than what defines it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STUDY ?= ar_dmvc_am.yaml

.PHONY: sweep test lint ui
.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

sweep: .venv/.stamp
	$(BIN)/python -m study.sweep $(STUDY)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not browser'

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# MLFLOW_TRACKING_URI from outside wins; the default is the local file that every study logs to. Neither make nor a
# command line sees the address, which may hold a password: the shell hands it on in the environment.
ui: .venv/.stamp
	@MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$$PWD/runs/mlflow.db}" exec $(BIN)/python -m mlflow ui
