# `make quickstart` and `make test` install what they need on their first call and nothing on their second.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# For CPython 3.11 on Linux, x86_64; elsewhere: make test LOCK=
LOCK ?= locks/dev.txt
EXTRAS := train,ort,rtx,dev

.PHONY: quickstart test faults smoke lint docs lock sbom image-test clean

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

# What each target of the Dockerfile installs, with hashes. Keeps what still fits pyproject; anew with UPGRADE=--upgrade.
compile = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --generate-hashes $(UPGRADE) \
	--constraint locks/constraints.txt --output-file locks/$(1).txt --python-version $(2) --python-platform $(3) $(4)
X86 := x86_64-manylinux_2_28
TRAIN := pyproject.toml --extra train --extra ort --extra rtx
lock: $(INSTALLED)
	$(call compile,train,3.11,$(X86),$(TRAIN))
	$(call compile,dev,3.11,$(X86),$(TRAIN) --extra dev --constraint locks/train.txt)
	printf '%s\n' hatchling editables setuptools pip | $(call compile,build,3.11,$(X86),- --constraint locks/dev.txt)
	printf '%s\n' cyclonedx-bom pip setuptools | $(call compile,sbom,3.11,$(X86),- --constraint locks/dev.txt)
	$(call compile,device,3.11,$(X86),pyproject.toml --extra device --extra ort --constraint locks/train.txt)
	$(call compile,tensorrt,3.12,$(X86),$(TRAIN))
	$(call compile,jetson6,3.10,aarch64-manylinux_2_35,pyproject.toml --extra device)
	$(call compile,jetson7,3.12,aarch64-manylinux_2_39,pyproject.toml --extra device)

# After a lock file changed: the bills of materials and the page of licences. Asks the package index.
sbom:
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --require-hashes --requirement locks/sbom.txt
	build/sbom/bin/python -m containers.sbom

# As root on Debian, with buildah and debootstrap: builds the images `train` and `device` and takes them through a run.
# WHEELS="FOLDER ..." spares downloads.
image-test: $(INSTALLED)
	$(BIN)/python -m containers.image_test --wheels $(WHEELS)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -m venv --clear $(VENV)
ifdef LOCK
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
endif
	touch $@
