# Every target makes .venv by itself when it is missing or older than what defines it.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do command -v $$name && break; done)
BIN := .venv/bin
STUDY ?= ar_dmvc_am.yaml
# Where pip finds the torch without CUDA: its own index unless another is named here.
TORCH_INDEX ?=

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: sweep test lint ui sbom
# .venv/.user: what studies need. .venv/.stamp: what tests and checks need besides.
.venv/.user: pyproject.toml requirements.txt requirements-cpu.txt requirements-cuda.txt mlflow/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "needs Python 3.11 or newer, '$(PYTHON)' is none; name one: make sweep PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@# On its own, and first: otherwise pip prefers the package index, whose torch for Linux is one with CUDA.
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --require-hashes -r requirements-cpu.txt \
	  || echo "pip knows of no torch without CUDA; taking the other"
	$(INSTALL) --require-hashes -r requirements.txt
	@# What is missing now is missing to a torch with CUDA.
	$(BIN)/python -m pip check >/dev/null || $(INSTALL) --require-hashes -r requirements-cuda.txt
	$(INSTALL) --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch $@

.venv/.stamp: .venv/.user requirements-dev.txt
	$(INSTALL) --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip check
	touch $@

sweep: .venv/.user
	$(BIN)/python -m study.sweep $(STUDY)

# Three processes on two cores: much of a test of faults is waiting.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not browser'

lint: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: .venv/.user
	$(BIN)/python -m study.ui

sbom: .venv/.user
	$(BIN)/python .ci/sbom.py dist/sbom.json
