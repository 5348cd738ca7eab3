# Every target sets itself up: the environment is made on first use and whenever pyproject changes.
PYTHON ?= python3.12
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: venv demo test test-slow chromium lint bench clean

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

test-slow: $(STAMP) chromium
	$(BIN)/python -m pytest -m slow

# Reports are opened in a real browser; without one that test is skipped.
chromium:
	@for name in chromium chromium-browser google-chrome; do \
	  command -v $$name >/dev/null 2>&1 && exit 0; \
	done; \
	if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes chromium; \
	else \
	  echo "no Chromium here, and no way to install it: reports are not opened in a browser"; \
	fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
