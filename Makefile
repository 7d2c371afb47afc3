# icecore: `make demo` shows the whole job, `make test` proves it. Everything lives in .venv.
PYTHON ?= python3
# uv resolves and links in about half a minute; INSTALLER=pip for machines where pip's own settings must hold.
INSTALLER ?= uv
BIN := .venv/bin

.PHONY: setup demo test test-slow check bench clean
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"icecore needs Python 3.11 to 3.13, found {v[0]}.{v[1]}: run make PYTHON=python3.12 (or similar)")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
ifeq ($(INSTALLER),uv)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all,dev]'
else
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
endif
	@$(BIN)/python -m icecore.extract.pairing
	@touch $@

demo: setup
	@$(BIN)/icecore demo demo

test: setup
	@$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

test-slow: setup
	@$(BIN)/python -m pytest -m 'slow and not gpu'

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --check || exit 1; done

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
