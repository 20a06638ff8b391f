# The two commands a newcomer needs are `make demo` and `make test`; both do their own set-up.

PYTEST_ARGS ?=
ARGS ?=
VENV := .venv/bin
# Names the lock command in the locks' headers, instead of the whole pip-compile line.
export CUSTOM_COMPILE_COMMAND = make lock

.PHONY: help demo test lint format bench setup setup-dev wheel lock manual clean

help:
	@echo "make demo     a network of relays on this machine, with SOCKS5 on 127.0.0.1:1080   (ARGS='--hops 4')"
	@echo "make test     checks and all tests                                (PYTEST_ARGS='-k socks -x')"
	@echo "make lint     ruff and mypy only"
	@echo "make format   ruff's formatter and the fixes it is sure of"
	@echo "make bench    the benchmarks                                      (ARGS='--quick')"
	@echo "make setup    what hopfare needs to run, into .venv"
	@echo "make wheel    a wheel of the native engine in dist/ (needs cargo)"
	@echo "make lock     renew requirements/*.txt from pyproject.toml"
	@echo "make manual   renew the list of settings in docs/operations/configuration.md"
	@echo "make clean    remove .venv and all caches"

demo: setup
	@exec $(VENV)/hopfare demo $(ARGS)

ifeq ($(strip $(PYTEST_ARGS)),)
test: setup-dev
	@$(VENV)/python scripts/test
else
test: setup-dev
	$(VENV)/pytest $(PYTEST_ARGS)
endif

lint: setup-dev
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy

format: setup-dev
	$(VENV)/ruff check --fix
	$(VENV)/ruff format

bench: setup-dev
	$(VENV)/python bench/run $(ARGS)

setup:
	@scripts/setup runtime

setup-dev:
	@scripts/setup dev

wheel:
	scripts/wheel

lock:
	scripts/lock

manual: setup-dev
	$(VENV)/python scripts/manual

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
