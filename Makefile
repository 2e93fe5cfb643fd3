# Two commands first: `make train` and `make test`. Both set themselves up.

PYTHON ?= python3
VENV ?= .venv
# For example: make train TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=
JOB ?= examples/quickstart.toml
# For example: make train ARGS=--fresh
ARGS ?=
# A folder with bamboo/ and oobleck/, the published traces; without it the tests on them are skipped.
export ELASTICMOE_TRACES ?=

BIN := $(VENV)/bin
SETUP := $(VENV)/.elasticmoe-setup
STDLIB := data/stdlib

export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: train test setup lint format types layers unit data clean
.PHONY: soak soak-simulator

train: setup data  ## learn real text on four workers; kill one, and see what happens
	$(BIN)/elasticmoe train $(JOB) $(ARGS)

test: lint types layers unit  ## everything that is checked on every change

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: $(STDLIB)/dataset.json

$(STDLIB)/dataset.json: | $(SETUP)
	$(BIN)/elasticmoe data pack --stdlib --out $(STDLIB)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## rewrite files as the lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

unit: setup
	$(BIN)/python -m pytest

soak: soak-simulator

soak-simulator: setup  ## 20,000 random schedules at 4 to 64 workers, 10 at 16,384: a quarter of an hour
	$(BIN)/elasticmoe simulate --schedules 20000 --processes 2
	$(BIN)/elasticmoe simulate --schedules 10 --workers 16384

soak: setup  ## 200 random faults in a row: kills, stops, cut links, full disks, flipped bits...
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m chaos soak --faults 200 $(ARGS)

clean:  ## remove what the targets above made; runs/ holds your jobs and stays
	rm -rf $(VENV) data/stdlib build *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis
