# Needs Python >= 3.9 and GNU make; every target installs the rest in its own environment.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
DIST ?= dist
ARGS ?=
# Processes that share the tests: more than cores, since tests wait for servers half of the time.
TEST_JOBS ?= 4

# An environment belongs to one Python: another Python makes it anew.
PYTHON_ID := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; \
	print("%s-%d.%d.%d" % (sys.implementation.name, v[0], v[1], v[2]) if v >= (3, 9) else "")' 2>/dev/null)
PIP_INSTALL = -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.PHONY: help demo test test-servers soak lint format types bench bench-check bench-scaling profile faults
.PHONY: dist clean

help:
	@echo 'make demo           run two traced services and print their traces'
	@echo 'make test           run the tests (ARGS="-k name" is passed to pytest)'
	@echo 'make test-servers   send requests to every framework on its server, and count the events'
	@echo 'make soak           send for 10 minutes with faults on and off (ARGS="--seconds 60": less)'
	@echo 'make lint           check style and format;  make format: apply them'
	@echo 'make types          check the types of both packages'
	@echo 'make bench          measure against the published packages and three other tracers'
	@echo 'make bench-check    measure, and fail if a ratio is worse than recorded'
	@echo 'make bench-scaling  measure how cost grows with the work (ARGS=--quick: in two minutes)'
	@echo 'make profile        measure each part of a span and of an event'
	@echo 'make faults         measure what an application pays while the server fails'
	@echo 'make dist           build both distributions, honeycomb-beeline and libhoney, into dist/'
	@echo 'make clean          remove environments, builds and caches'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (now: $(PYTHON)).'

demo: $(DEMO_VENV)/installed-demo
	@$(DEMO_VENV)/bin/python examples/demo/run.py $(ARGS)

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadgroup $(ARGS)

test-servers: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.servers.tally $(ARGS)

soak: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.faults.soak $(ARGS)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/installed-dev
	$(VENV)/bin/mypy --strict beeline libhoney

bench: $(VENV)/installed-test
	$(VENV)/bin/python benchmarks/run.py $(ARGS)

bench-check: $(VENV)/installed-test
	$(VENV)/bin/python benchmarks/run.py --check $(ARGS)

profile: $(VENV)/installed-test
	$(VENV)/bin/python benchmarks/parts.py $(ARGS)

faults: $(VENV)/installed-test
	$(VENV)/bin/python benchmarks/faults.py $(ARGS)

bench-scaling: $(VENV)/installed-bench
	$(VENV)/bin/python benchmarks/growth.py $(ARGS)

# libhoney is empty, and requires the other one; its README.md says what it is for.
dist: $(VENV)/made-with-$(PYTHON_ID)
	@$(VENV)/bin/python $(PIP_INSTALL) build
	$(VENV)/bin/python -m build --outdir '$(DIST)' .
	$(VENV)/bin/python -m build --outdir '$(DIST)' distributions/libhoney

clean:
	rm -rf .venv .venv-demo .venvs build dist *.egg-info distributions/libhoney/*.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find beeline libhoney tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps: what is installed, and since when.

$(VENV)/installed-test: $(VENV)/made-with-$(PYTHON_ID) pyproject.toml
	@echo 'Installing what the tests need into $(VENV)'
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/made-with-$(PYTHON_ID) pyproject.toml
	@echo 'Installing the development tools into $(VENV)'
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/made-with-$(PYTHON_ID) pyproject.toml
	@echo 'Installing what the plots need into $(VENV)'
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[bench]'
	@touch $@

$(DEMO_VENV)/installed-demo: $(DEMO_VENV)/made-with-$(PYTHON_ID) pyproject.toml
	@echo 'Installing what the demo needs into $(DEMO_VENV)'
	@$(DEMO_VENV)/bin/python $(PIP_INSTALL) -e '.[flask-sqlalchemy]'
	@touch $@

%/made-with-$(PYTHON_ID):
	@test -n '$(PYTHON_ID)' || { \
		echo 'error: Python 3.9 or newer is needed, but "$(PYTHON)" is' \
			"$$($(PYTHON) -c 'import platform as p; print("Python " + p.python_version())' \
			2>/dev/null || echo 'no interpreter that runs')." \
			'Choose another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: $(PYTHON) comes without its venv module;' \
			'on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Making $* with $(PYTHON_ID)'
	@$(PYTHON) -m venv --clear $*
	@$*/bin/python $(PIP_INSTALL) --upgrade pip
	@touch $@
