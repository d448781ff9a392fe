# The one way to set up, check and try this project; continuous integration (.ci/run) uses it too.

PYTHON ?= python3
# For pytest, for example: make test ARGS='-n 0 -x -k private_node'
ARGS ?=

PIP = .venv/bin/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL = help
.PHONY: help .venv demo article test faults fuzz fuzz-coverage bench lint format docs conformance clean

help: ## list these targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/installed-for-tests ## the virtual environment with all that development needs

demo: .venv/installed ## a Flask application behind a front, a queue and a worker: http://localhost:8888
	@PYTHON='$(PYTHON)' scripts/install-packages.sh rabbitmq-server
	@exec .venv/bin/crew-wsgi-dev --app-dir examples/flask_app app:app --port 8888 --processes 2 --timeout 10

article: .venv/installed ## calls, publications and long polling from a Tornado server: http://localhost:8888
	@PYTHON='$(PYTHON)' scripts/install-packages.sh rabbitmq-server
	@exec .venv/bin/python examples/article/run.py

# Without RabbitMQ the tests that need it are skipped, except in CI; so there it must be installed.
test: .venv/installed-for-tests lint ## lint, then all tests
	@scripts/install-packages.sh rabbitmq-server git chromium chromium-driver || test -z "$$CI"
	.venv/bin/python -m pytest -n 3 --dist loadfile $(ARGS)

# Another seed each time; make faults ARGS='--seed 7 worker' repeats a part of a run.
faults: .venv/installed-for-tests ## break the running stack in every way, count what was lost, write docs/reliability.md
	@scripts/install-packages.sh rabbitmq-server
	.venv/bin/python -m tests.faults $(or $(ARGS),--write)

# Another seed each time; CREW_FUZZ_SEED=… repeats a run.
fuzz: .venv/installed-for-tests ## 100,000 random messages into a live worker and a live client
	@scripts/install-packages.sh rabbitmq-server
	CREW_FUZZ_MESSAGES=100000 .venv/bin/python -m pytest -n 0 -s $(ARGS) tests/test_fuzz.py

# make fuzz-coverage ARGS='world --seconds 600 --seed 7': one target, longer, as before. atheris has wheels for Linux only.
fuzz-coverage: .venv/installed-for-tests ## let a coverage-guided fuzzer search what reads bytes and what keeps state
	@$(PIP) install --editable '.[fuzz]'
	.venv/bin/python -m tests.fuzzing $(ARGS)

# make bench ARGS='bridges --rounds 2': one table, and nothing is written.
bench: .venv/installed-for-tests .venv-bench/installed ## measure crew beside others, write benchmarks/README.md
	@scripts/install-packages.sh rabbitmq-server wrk
	@$(PIP) install --editable '.[bench]'
	.venv/bin/python -m benchmarks $(or $(ARGS),--write)

lint: .venv/installed-for-tests ## ruff, its formatter and mypy, without changing anything
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/installed-for-tests ## let ruff format and mend the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: .venv/installed-for-tests ## write docs/api.md from the docstrings
	.venv/bin/python scripts/build_api_reference.py

conformance: .venv/installed-for-tests ## write docs/conformance.md: what crew and gunicorn do with real applications
	@PYTHON='$(PYTHON)' scripts/install-packages.sh rabbitmq-server
	.venv/bin/python scripts/conformance.py

clean: ## remove all that these targets made
	rm -rf .venv .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than what they were made from. Editable, so that a change in the code needs no new installation.
.venv/installed: .venv/made setup.py pyproject.toml
	@$(PIP) install --editable . flask
	@touch $@

.venv/installed-for-tests: .venv/made setup.py pyproject.toml
	@$(PIP) install --editable '.[test]'
	@$(PIP) install --no-deps 'httpbin>=0.10.4'
	@touch $@

.venv-bench/installed: benchmarks/requirements.txt .venv/made
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip --quiet --disable-pip-version-check install -r benchmarks/requirements.txt
	@touch $@

.venv/made:
	@PYTHON='$(PYTHON)' scripts/install-packages.sh python3-venv
	@$(PYTHON) -c 'import sys; sys.exit("crew needs Python 3.10 or newer: make PYTHON=/path/to/it" if sys.version_info < (3, 10) else 0)'
	@.venv/bin/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@touch $@
