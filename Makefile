# make quickstart   bring the data, run the quickstart suite, write its report
# make test         ruff, mypy, pytest
# Both set themselves up: a virtual environment in .venv, the tested versions, Fashion-MNIST in data/. A second run reuses them.

PYTHON ?= python3
SUITE ?= quickstart
OUT ?= runs/$(SUITE)
ARGS ?=
READY := .venv/ready
DATA := data/fashion-mnist

.PHONY: quickstart test install data clean

quickstart: install data
	.venv/bin/maelift bench $(SUITE) data.path=$(DATA) out=$(OUT) $(ARGS)

test: install data
	.venv/bin/ruff check .
	cd .venv/src && ../bin/mypy -p maelift --config-file maelift/pyproject.toml
	.venv/bin/python -m pytest -q $(ARGS)

install: $(READY)

data: install
	.venv/bin/maelift data fashion-mnist out=$(DATA)

# The environment counts as ready only once everything is in it: one that was killed half-way is made anew.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "maelift: no $(PYTHON) here. Install Python 3.10 or newer, or give PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "maelift: $$($(PYTHON) --version) is too old. Expected 3.10 or newer; give PYTHON=python3.11, say." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "maelift: $(PYTHON) can't make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@echo "maelift: installing into .venv (torch included: some minutes, some GB)"
	@.venv/bin/pip install --quiet -c constraints.txt -e '.[dev]' || { echo "maelift: the installation failed, see above. Is the package index reachable (network, proxy), and is there disk space?" >&2; exit 2; }
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/maelift
	@touch $(READY)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
