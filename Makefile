# Everything a newcomer types, in one place. `make` alone explains itself.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed
DATA   ?=
TARGET ?=
SCALE  ?= demo

# tests: this checkout's own folders, one thread per worker, no windows
CALM   := env -u PE_ADVSEG_HOME OMP_NUM_THREADS=1 MPLBACKEND=agg

# these notebooks are run by tests/test_end_to_end.py through the shell, as a user runs them, and not a second time
IN_SHELL := 01_look_at|03_semi_sup|04_third_h|08_what_to|11_the_whole|90_tables

export PATH := $(BIN):$(PATH)

.PHONY: help install paper networks methods third released realism circle order starter gpu gpu-wheels test docs fuzz viewer lab readme prepare clean-runs

help:  ## what each target does (this list)
	@echo "pe_advseg: an open workbook for pulmonary embolism segmentation. Research only, not for diagnosis."
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS="$$(printf '\t')" read -r target text; do printf '  make %-11s %s\n' "$$target" "$$text"; done
	@echo "Variables: DATA=folder (labelled scans), TARGET=folder (unlabelled scans), SCALE=smoke|demo|study|paper, VENV=$(VENV)"

install: $(STAMP)  ## everything into .venv, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): several minutes the first time, most of it PyTorch."
	@test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -c constraints.txt -e '.[dev]'
	@touch $@

paper: install  ## the whole comparison, from scans to figures/ (synthetic hospitals; or DATA=..., TARGET=...)
	$(BIN)/pe-advseg paper --data "$(DATA)" --target "$(TARGET)" --scale "$(SCALE)"

networks: install  ## experiment 02: which network sees small emboli? (longer)
	$(BIN)/pe-advseg experiment 02_networks --scale "$(SCALE)"

realism: install  ## experiments 09, 10, 12, 13: a real patient, speed, realism, the domain gap (longer)
	$(BIN)/pe-advseg experiment 09_synthetic_to_real --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 10_speed --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 12_synthetic_hospitals --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 13_domain_gap --scale "$(SCALE)"

methods: install  ## experiments 06, 07: all methods, the recipe, the discriminators, the budget of labels (SCALE=study: a night)
	$(BIN)/pe-advseg experiment 06_methods --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 06_recipe --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 06_ladder --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 06_confidence --scale "$(SCALE)"
	$(BIN)/pe-advseg experiment 07_label_budget --scale "$(SCALE)"

third: install  ## experiment 04: fine-tuning on a third hospital (longer)
	$(BIN)/pe-advseg experiment 04_third_hospital --scale "$(SCALE)"

released: install  ## experiment 05: the released code, one defect at a time (longer)
	$(BIN)/pe-advseg experiment 05_as_released --scale "$(SCALE)"

circle: install  ## experiment 11: annotate, look, correct, retrain, in ten minutes
	$(BIN)/pe-advseg experiment 11_the_whole_circle --scale "$(SCALE)"

order: install  ## experiment 08: which scans to correct first (longer)
	$(BIN)/pe-advseg experiment 08_what_to_label_next --scale "$(SCALE)"

starter: install  ## experiment 14: the model that ships with the package (SCALE=paper: a GPU, or a night)
	$(BIN)/pe-advseg experiment 14_starter --scale "$(SCALE)"

# no `install`: the machine with the GPU has no network, and its own Python has torch
gpu:  ## experiments 03, 06 at scale paper on a GPU without network: nine minutes a call, call again (docs/gpu.md)
	@PYTHONUNBUFFERED=1 $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tools/gpu.py || test $$? -eq 75

gpu-wheels: install  ## what `make gpu` needs on that machine (Linux x86-64, Python 3.11), into build/wheels
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d build/wheels \
		--python-version 3.11 $(addprefix --platform=manylinux,2014_x86_64 _2_27_x86_64 _2_28_x86_64) \
		-c constraints.txt -r tools/gpu_wheels.txt

test: install  ## clean and export leave no diff, the site builds, every notebook runs, pytest
	@$(BIN)/python tools/sync.py --check
	@$(BIN)/python tools/docs.py
	$(CALM) $(BIN)/nbdev_test --n_workers 2 --do_print --skip_file_re '^([_.]|$(IN_SHELL))'
	$(CALM) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: install  ## the site, from the notebooks, in _docs/html (no notebook is run, no network needed)
	@$(BIN)/python tools/docs.py

FUZZ_SECONDS ?= 60
fuzz: install  ## damaged files against the readers, guided by coverage, for FUZZ_SECONDS (60)
	$(CALM) FUZZ_SECONDS="$(FUZZ_SECONDS)" $(BIN)/python tools/fuzz_reader.py

viewer: install  ## the loop in a real viewer: OHIF (npm, 50 MB) with Orthanc, in Chromium; correct, export, import
	$(CALM) $(BIN)/python tools/viewer.py

lab: install  ## JupyterLab, opened at the first page of the workbook
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

readme: install  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

prepare: install  ## before a commit: format, clean and export the notebooks, make README.md and pictures
	@$(BIN)/python tools/sync.py

clean-runs:  ## delete runs/ (trained models and executed notebooks)
	rm -rf "$(CURDIR)/runs"
