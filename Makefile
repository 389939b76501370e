# Everything runs in .venv, which the first target that needs it makes, with the versions in constraints.txt.
# On Linux, PyPI's torch brings gigabytes of CUDA libraries; constraints.txt says how to get the CPU build instead.

PYTHON ?= python3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test pytest quality test-minimum test-latest notebook mutants audit clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1:\2/p' $(MAKEFILE_LIST) | awk -F: '{ printf "%-18s %s\n", $$1, $$2 }'

quickstart: .venv/.installed ## Run examples/quickstart.py
	.venv/bin/python examples/quickstart.py

# Side by side: the type check has one thread.
test: .venv/.installed ## Check the code and run the tests
	$(MAKE) --jobs=2 quality pytest

# A worker that is done takes tests from the other.
pytest: .venv/.installed
	.venv/bin/python -m pytest -n auto --dist worksteal

quality: .venv/.installed ## Lint, format check and type check
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy hf_exptest

# Old releases use what newer ones have deprecated since, so here a deprecation is only printed.
test-minimum: .venv-minimum/.installed ## Run the tests with the oldest allowed dependencies (Python 3.10 to 3.12)
	.venv-minimum/bin/python -m pytest -n auto -W default

# Upgraded each time, since what is newest changes.
test-latest: ## Run the tests with the newest releases there are
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --upgrade --upgrade-strategy eager -e ".[examples,reporters,test]"
	.venv-latest/bin/python -m pytest -n auto

notebook: .venv/.installed ## Run examples/exptest.ipynb from beginning to end
	.venv/bin/python -m pytest -m notebook tests/test_notebook.py

mutants: .venv/.installed ## Take out one protection at a time, and ask whether a test notices
	.venv/bin/python tests/mutations.py

audit: ## Look for known vulnerabilities in the pinned versions; needs PyPI's own index
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install pip-audit==2.10.1
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean: ## Delete the environments, caches and builds
	rm -rf .venv .venv-minimum .venv-latest .venv-audit build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find hf_exptest tests examples -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# TRL 1.0.0 asks for datasets 4.7.0, so that comes first. pip says that 4.0.0 goes against it, and goes on.
.venv-minimum/.installed: pyproject.toml .ci/constraints-minimum.txt
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install -c .ci/constraints-minimum.txt -e ".[examples,test]"
	.venv-minimum/bin/python -m pip install datasets==4.0.0
	touch $@
