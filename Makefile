# make quickstart   sets up .venv, trains on the drawn data set and probes the loss of the result
# make test         sets up .venv, then lint and all tests, then the backend tests once more on JAX
# make lint         ruff alone
# make bench        every benchmark, one after the other
# make bench-doctor what the doctor says of 30 faults and of healthy trainings, on two cores
# make docs         writes the generated parts of docs/configuration.md and docs/doctor.md
# make clean        removes .venv and caches; runs, data sets and weights stay
#
# PYTHON chooses the interpreter that .venv is made with: make quickstart PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CHECK := import sys; v = sys.version_info[:2]; \
	sys.exit(None if (3, 10) <= v <= (3, 13) else "%s: expected Python 3.10 to 3.13, received %d.%d" % ((sys.executable,) + v))
HINT := { echo "name another interpreter, as in: make quickstart PYTHON=python3.12 (after 'make clean' if there is a .venv)" >&2; exit 1; }

# A test is mostly Python that traces a graph: one process a core, and one more for the time that some of them wait for
# trainings in processes of their own. The fixtures of a file stay together; the files come in the order of conftest.py,
# the longest first.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')
TOGETHER := --dist loadfile --no-loadscope-reorder

# Compiling is most of a test on JAX, and what is compiled runs a few times at most: XLA leaves its optimizations out, and
# what one process has compiled, single operations included, the others take from a folder.
JAX_TESTS := JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.venv/jax-cache" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# Albumentations asks the network for a newer version of itself at import; nothing here needs the answer.
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: quickstart test lint bench bench-doctor docs clean

quickstart: .venv/installed
	$(BIN)/multigrid train --config configs/quickstart.yaml --save-weights weights/model.h5
	$(BIN)/python tests/probe_multigrid_loss.py --weights weights/model.h5 --num-batches 2

test: .venv/installed-test
	$(BIN)/ruff check .
	$(JAX_TESTS) $(BIN)/python -m pytest -n $(WORKERS) $(TOGETHER)
	$(JAX_TESTS) KERAS_BACKEND=jax $(BIN)/python -m pytest -m backend -n auto --maxprocesses 4 $(TOGETHER)

lint: .venv/installed-test
	$(BIN)/ruff check .

bench: .venv/installed-test
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

bench-doctor: .venv/installed-test
	$(BIN)/python benchmarks/faults/run.py --tier smoke --jobs 2
	$(BIN)/python benchmarks/faults/score.py --detail

docs: .venv/installed
	$(BIN)/python -c 'from multigrid.config import describe; p = "docs/configuration.md"; m = "<!-- generated -->\n"; \
	s = open(p, encoding="utf-8").read().partition(m); open(p, "w", encoding="utf-8").write(s[0] + m + "\n" + describe())'
	$(BIN)/python -c 'from multigrid.diagnosis.reference import describe; p = "docs/doctor.md"; m = "<!-- generated -->\n"; \
	s = open(p, encoding="utf-8").read().partition(m); open(p, "w", encoding="utf-8").write(s[0] + m + "\n" + describe())'

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than setup.cfg only after it has changed: then, and only then, pip runs again.
.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): no such interpreter" >&2; $(HINT); }
	@$(PYTHON) -c '$(CHECK)' || $(HINT)
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg | .venv/bin/pip
	@$(BIN)/python -c '$(CHECK)' || $(HINT)
	@echo "installing into .venv; the first time takes some minutes"
	$(PIP) -e .
	@touch $@

.venv/installed-test: setup.cfg | .venv/bin/pip
	@$(BIN)/python -c '$(CHECK)' || $(HINT)
	@echo "installing into .venv; the first time takes some minutes"
	$(PIP) -e '.[test,jax]'
	@touch .venv/installed $@
