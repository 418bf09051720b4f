# make run    install everything, restore the photograph in examples/
# make test   install everything, run all tests
# make lint   install everything, check style, types and the walls between rooms
# make bench  print the figures that docs and README quote for speed

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
MANIFESTS := pyproject.toml requirements.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: run test lint bench clean

run: $(VENV)/installed
	$(BIN)/restorekit restore examples/noisy.png -o out/restored.png --compare --overwrite
	@echo "look at out/restored.png and out/restored.compare.png"

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed
	$(BIN)/python benchmarks/startup.py

# Entry points are frozen when a distribution is installed, so that manifests are what installing depends on.
$(VENV)/installed: $(MANIFESTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "restorekit needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) out
