# `make search` and `make test` work from a fresh clone: Python 3.11 or newer, make, and (for speed) a C++ compiler.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: search test check bench docs references clean

search: $(READY)
	$(BIN)/discover search --space lion_like --time 2m

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check dsl tasks discover tests benchmarks
	$(BIN)/ruff format --check dsl tasks discover tests benchmarks
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.lanes
	$(BIN)/python -m benchmarks.search

docs: $(READY)
	$(BIN)/python -m dsl.docs
	$(BIN)/python -m tasks.docs

references: $(READY)
	$(BIN)/discover reference

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# constraints.txt pins every version; torch first, so that nothing else pulls another build of it.
$(READY): pyproject.toml constraints.txt tests/oracles.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/oracles.txt
	@$(BIN)/python -c "from discover import native; native.available()"  # compiled now, so that no search waits for it
	@touch $@
