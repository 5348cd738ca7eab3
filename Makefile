# Every target sets itself up: the environment is made on first use and whenever pyproject changes.
PYTHON ?= python3.12
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: venv demo test test-slow lint bench clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python 3.12 .venv && uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  PY=$$(command -v $(PYTHON) || command -v python3) && \
	  $$PY -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "jaxforget needs Python >= 3.12 (set PYTHON=...)"; exit 1; }; \
	  $$PY -m venv .venv && $(BIN)/python -m pip install --quiet -e '.[dev]'; \
	fi
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/jaxforget quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
