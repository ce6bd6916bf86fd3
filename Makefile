# make demo | test | coverage | lint | bench | clean. Needs Python 3.11 or newer with pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo setup test coverage test-quick lint bench clean

demo: setup
	$(BIN)/pipeline demo --workdir workdir/demo

setup: $(VENV)/.ready

# sam2 is a source package that imports torch while it builds, so torch comes first and without build isolation.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision setuptools wheel
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation sam2
	$(PIP) --no-build-isolation --editable '.[embedded,dicom,jobs,export,dev]'
	$(PIP) --no-deps roc-validator
	touch $@

# Files are taken in the order of tests/conftest.py, which begins with the long ones.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) --durations=15

# Counting lines takes half as long again as the tests.
coverage: setup
	$(PYTEST) --cov --cov-report=term:skip-covered

test-quick: setup
	$(BIN)/python -m pytest -m 'not slow' tests/unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m numpydoc.hooks.validate_docstrings $$(git ls-files 'manifests/*.py' 'stages/*.py' 'pipeline/*.py')

bench: setup
	for name in $$(ls tests/benchmarks | sed -n 's/^\([a-z].*\)\.py$$/\1/p' | grep -v ^gpu_); do $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .coverage .coverage.* workdir/demo
