# `make quickstart` and `make test` install what they need on their first call and nothing on their second.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The lock is made for CPython 3.11 on Linux; elsewhere: make test CONSTRAINTS=
CONSTRAINTS ?= -c requirements.lock
EXTRAS := train,ort,rtx,dev

.PHONY: quickstart test faults smoke lint docs lock clean

quickstart: $(INSTALLED)
	$(BIN)/frs-pipeline run configs/quickstart.yaml

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Kills, full disks, damaged files: half an hour. docs/reliability.md has the figures of one campaign.
faults: $(INSTALLED)
	$(BIN)/python -m pytest tests/faults -m "campaign or not campaign" --durations=0

# Every recipe of the paper through all stages with a few steps: some minutes each. With FRS_DATA on images of COCO.
smoke: $(INSTALLED)
	$(BIN)/python -m tests.smoke

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy --strict -p pipeline -p stages
	@# What runs on a device: JetPack 6 has Python 3.10.
	$(BIN)/mypy --python-version 3.10 -p frs.edge -p frs.evaluation -m frs.export.engine -p pipeline -p stages

docs: $(INSTALLED)
	$(BIN)/python -m pipeline.reference docs

lock: $(INSTALLED)
	$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-options \
		$(foreach extra,train ort rtx dev,--extra $(extra)) --constraint lock-constraints.txt --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	touch $@
