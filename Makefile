# Two commands do everything, set-up included: `make run` and `make test`.
#   make run [SCENARIO=file.yaml] [ARGS="--set key=a,b"]
#   make test [TESTS=tests/traces] [ARGS="-k word"]
SCENARIO ?= scenarios/quickstart.yaml
TESTS ?=
ARGS ?=

.PHONY: help run test lint doctor clean
help:
	@echo "make run    set up this machine if needed, then run $(SCENARIO)"
	@echo "make test   set up this machine if needed, then run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make doctor say what this machine can do"
	@echo "make clean  remove the environment, stamps and caches (runs/ stays)"

run:
	@tools/setup.sh run
	@.venv/bin/testbed run $(SCENARIO) $(ARGS)

test:
	@tools/setup.sh test
	@tools/test.sh $(TESTS) $(ARGS)

lint:
	@tools/setup.sh lint
	.venv/bin/ruff check .
	.venv/bin/mypy testbed

doctor:
	@tools/setup.sh run
	@.venv/bin/testbed doctor

clean:
	rm -rf .venv .setup build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find testbed tests -name __pycache__ -type d -prune -exec rm -rf {} +
