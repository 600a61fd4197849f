# Every recipe works in the virtual environment .venv (made on first need, from the lock files).
# An environment of your own: make check VENV=/path/to/venv

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Processes that run tests at once: most tests wait for something. A file's tests stay together.
PYTEST_WORKERS ?= 3
UV ?= uv
NIGHT_SEED ?= $(shell date +%Y%m%d)

.PHONY: acceptance help check test lint fmt types layers locks nightly openhands run play s3 manual bench pjdfstest lock clean setup
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(BIN)/pytest ## what is needed to develop: system packages, .venv with the dev lock

$(VENV)/bin/pytest:
	./scripts/setup dev

check: lint types layers locks test ## everything that has to be green before a commit

lint: | $(BIN)/pytest ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: | $(BIN)/pytest ## mypy, strict
	$(BIN)/mypy

layers: | $(BIN)/pytest ## import-linter: the layers of docs/architecture.md
	$(BIN)/lint-imports

test: | $(BIN)/pytest ## the tests; PYTEST_ARGS="-k name" for some, PYTEST_WORKERS=0 in one process
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

manual: | $(BIN)/pytest ## the manual page and the completion of shells anew, from the commands
	$(BIN)/python -m scripts.manual

fmt: | $(BIN)/pytest ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

run: ## the demonstration
	./quickstart

play: ## leave a workspace mounted to play in
	./quickstart --play

s3: | $(BIN)/pytest ## a real S3 server (SeaweedFS) on loopback to try things with; ctrl-C ends it
	$(BIN)/python -m tests.support.seaweed --dir .demo/s3

bench: | $(BIN)/pytest ## our mount against a native directory and a null filesystem, the short form
	$(BIN)/python -m bench --quick $(BENCH_ARGS)

acceptance: | $(BIN)/pytest ## the acceptance run: real programs against SeaweedFS, kills, figures (ten minutes)
	$(BIN)/python -m scripts.acceptance

nightly: | $(BIN)/pytest ## the long forms of docs/reliability.md, one after the other (some five hours)
	$(BIN)/python -m tests.sim --seed $(NIGHT_SEED) --total 1000000 --ops 2000
	$(BIN)/python -m tests.fuzz --seconds 1900 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.crash.ace --length 3
	$(BIN)/python -m tests.crash.every
	$(BIN)/python -m tests.crash.daemons
	$(BIN)/python -m tests.crash.power --images 5000 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.crash.power --mount 20 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.crash.power --cuts 60 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.rot --trials 1200 --cache-trials 600 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.history.lives --seconds 1800 --seed $(NIGHT_SEED)
	$(BIN)/python -m tests.faults.long
	$(BIN)/python -m tests.e2e.test_holder_once
	$(BIN)/python -m tests.e2e.test_holder_programs --kills 10
	$(BIN)/python -m tests.model.test_two_trees --seed $(NIGHT_SEED) --seconds 1800
	$(BIN)/python -m tests.soak.soak --kills 320 --seed $(NIGHT_SEED)

openhands: | $(BIN)/pytest ## the OpenHands SDK on a workspace, in a virtual environment of its own (Python 3.12)
	./scripts/setup openhands
	$(BIN)/pytest tests/e2e/test_openhands.py $(PYTEST_ARGS)

pjdfstest: | $(BIN)/pytest ## the POSIX suite, natively and on a mount: SUITE=a checkout of pjd/pjdfstest (root)
	$(BIN)/python -m scripts.pjdfstest --suite $(SUITE) $(PJDFSTEST_ARGS)

# The locks hold versions and hashes only: where a package comes from is the installer's business.
COMPILE := $(UV) pip compile --quiet --generate-hashes \
	--no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
LOCK := $(COMPILE) --universal --python-version 3.11

lock: ## the lock files anew (needs uv); LOCK_ARGS=--upgrade for new versions
	$(LOCK) $(LOCK_ARGS) requirements/build.in --no-strip-markers -o requirements/build.txt
	$(LOCK) $(LOCK_ARGS) pyproject.toml -o requirements/runtime.txt
	$(LOCK) $(LOCK_ARGS) pyproject.toml --extra dev -c requirements/runtime.txt -o requirements/dev.txt
	$(COMPILE) --python-platform linux --python-version 3.12 $(LOCK_ARGS) requirements/openhands.in pyproject.toml \
		-c requirements/runtime.txt --override requirements/openhands-without.in -o requirements/openhands.txt
	@$(MAKE) --no-print-directory locks

locks: ## no address in a lock file, no line without a hash
	@! grep -nE '://|@|^ *-' requirements/*.txt | grep -vE ':    --hash=sha256:[0-9a-f]{64}( \\)?$$'

clean: ## what tools and scripts left behind (not the mounts: ./quickstart ends those)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
