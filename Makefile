# `make help` lists what there is. Every target makes the environment that it needs by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
LOCKED := pyproject.toml requirements/run.txt scripts/bootstrap

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/run.stamp: $(LOCKED)
	@scripts/bootstrap run

.venv/dev.stamp: $(LOCKED) requirements/dev.txt
	@scripts/bootstrap dev

.PHONY: devenv
devenv: .venv/dev.stamp ## Make .venv with everything that development needs

.PHONY: demo
demo: .venv/run.stamp ## Run the example study from start to finish
	@$(BIN)/rap demo

.PHONY: up
up: .venv/run.stamp ## Run a controller, an agent and a database until Ctrl-C (ARGS="--port 0 ...")
	@$(BIN)/rap up $(ARGS)

.PHONY: check
check: .venv/dev.stamp ## Lint, check formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: .venv/dev.stamp ## Run all tests (ARGS="-k name ...")
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

.PHONY: test-fast
test-fast: .venv/dev.stamp ## Run the tests that need no real processes
	$(BIN)/python -m pytest -m "not slow" -n auto $(ARGS)

.PHONY: chaos
chaos: .venv/dev.stamp ## Break everything at random, count what was lost (ARGS="--jobs 10000 --kills 300")
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: fix
fix: .venv/dev.stamp ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: ## Write the locked requirements anew (needs uv; ARGS=--upgrade)
	scripts/lock.sh $(ARGS)

.PHONY: clean
clean: ## Remove everything that these targets have made
	rm -rf .venv .rap-demo build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
