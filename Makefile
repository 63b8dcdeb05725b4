# Needs Python >= 3.11 and make. `make demo` and `make test` set everything up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test quick check bench leaderboards clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "evalkit needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[pesq]' || echo "pesq could not be built (it needs a C compiler): PESQ is n/a and its tests skip"
	@touch $@

# The main job on the embedded data set: no download, about a minute.
demo: setup
	$(BIN)/evalkit run --task scenes --system identity,silence,noise,pcm:8,mulaw,resample:8000,mdct:6,opus:6,mp3:8 --limit 24 --jobs 2 --out runs/demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2 evalkit tasks tests

quick: setup
	$(BIN)/python -m pytest -n 2 -m 'not slow' evalkit tasks tests

bench: setup
	$(BIN)/python tests/benchmarks/bench.py

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
