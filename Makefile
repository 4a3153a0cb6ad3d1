# make quickstart   bring the data, run the quickstart suite, write its report      ARGS="key=value ..." change it
#                   FULL=1: detection and segmentation compared too, in an hour
# make test         the frameworks of the adapters, ruff, mypy, pytest               ARGS="-k word" go to pytest
# make soak         kill a pretraining of two processes 20 times, compare its end with an uninterrupted one's
# make stops        stop runs at random moments in three ways, 20 times each; ends compared, an hour; needs root
# make lint         ruff and mypy only
# make docs         the documentation site, in site/
# Each sets itself up: a virtual environment in .venv, the tested versions, Fashion-MNIST in data/. A second run
# reuses them.

PYTHON ?= python3
FULL ?=
SUITE ?= quickstart$(if $(FULL),_full)
OUT ?= runs/$(SUITE)
ARGS ?=
# Test processes: more than cores, as tests also wait for processes that they start, stop and resume.
TESTERS ?= $(shell "$(PYTHON)" -c 'import os; n = os.cpu_count() or 1; print(n + (n + 1) // 2)' 2>/dev/null || echo auto)
READY := .venv/ready
FRAMEWORKS := .venv/frameworks
DATA := data/fashion-mnist
SCENES := data/scenes

.PHONY: quickstart test soak stops lint docs install frameworks data clean

quickstart: install data
	$(if $(FULL),.venv/bin/maelift data fashion-scenes source=$(DATA) out=$(SCENES) pool=0)
	.venv/bin/maelift bench $(SUITE) data.path=$(DATA) "out=$(OUT)" $(ARGS)

test: frameworks lint data
	.venv/bin/python -m pytest -q -n $(TESTERS) --dist loadfile --no-loadscope-reorder --durations=20 $(ARGS)

# mypy takes the package's name from its folder; .venv/src/maelift leads here, whatever this folder is called.
soak: install
	.venv/bin/python tests/soak.py $(ARGS)

stops: install
	.venv/bin/python tests/stops.py $(ARGS)

lint: install
	.venv/bin/ruff check .
	cd .venv/src && ../bin/mypy -p maelift --config-file maelift/pyproject.toml

docs: install
	.venv/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	.venv/bin/mkdocs build --strict

install: $(READY)

frameworks: $(FRAMEWORKS)

$(FRAMEWORKS): tests/frameworks.sh $(READY)
	@tests/frameworks.sh || { \
	  echo "maelift: a framework could not be installed, see above. Tests without them: make lint data, then" \
	    ".venv/bin/python -m pytest" >&2; exit 2; }
	@touch $(FRAMEWORKS)

data: install
	.venv/bin/maelift data fashion-mnist out=$(DATA)

# An environment that came with a copied or moved folder leads back to the old one: it is made anew.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY)
endif

# .venv/installing is there while pip works: an environment that was left half-made is made anew; a whole one is
# brought up to date in place.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "maelift: no $(PYTHON) here. Install Python 3.10 or newer, or give PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "maelift: $$("$(PYTHON)" --version) is too old. Expected 3.10 or newer; give PYTHON=python3.11, say." >&2; \
	  exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "maelift: $(PYTHON) can't make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 2; }
	@if [ "$$(cat $(READY) 2>/dev/null)" != "$(CURDIR)" ] || [ -e .venv/installing ]; then \
	  rm -rf .venv && "$(PYTHON)" -m venv .venv; fi
	@touch .venv/installing
	@echo "maelift: installing into .venv (torch included: some minutes, some GB)"
	@.venv/bin/python -m pip install --disable-pip-version-check --retries 2 -c constraints.txt -e '.[dev,heif,transformers,parquet,peft,slurm,ray,tiff,dicom,nifti,webdataset]' || { \
	  echo "maelift: the installation failed, see above. Is the package index reachable (network, proxy), and is" \
	    "there disk space? Then give the same command again." >&2; exit 2; }
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/maelift
	@rm .venv/installing && echo "$(CURDIR)" > $(READY)

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
