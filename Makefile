# make demo   train, classify, explain on generated images, from nothing to demo/report.html
# make test   what a change must pass: quality and all tests

PYTHON ?= python3
PYTEST_WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
FLOOR_TESTS := tests/models tests/pipelines tests/test_guidance.py tests/training/test_checkpoints.py \
	tests/hub/test_community_pipelines.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-floors quality style docs-check kill-matrix clean

help:
	@echo "make demo        the whole road on generated images, in minutes: demo/report.html"
	@echo "make test        quality and all tests"
	@echo "make test-floors tests of models, pipelines and checkpoints with the oldest versions that setup.cfg allows"
	@echo "make quality     ruff and mypy, changing nothing"
	@echo "make style       let ruff format and mend"
	@echo "make kill-matrix kill runs at random moments, start them again, compare bit for bit; some minutes"
	@echo "make docs-check  links and Python examples of the documents"
	@echo "make clean       remove what builds and checks leave behind (not .venv, demo/ or runs/)"

install: $(INSTALLED)

# Runs again only when the requirements changed.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python training/run_demo.py

test: quality
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS)

test-floors:
	test -x .venv-floors/bin/python || $(PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install -c constraints-floors.txt -e ".[training,dicom]" pytest
	OMP_NUM_THREADS=1 .venv-floors/bin/python -m pytest $(FLOOR_TESTS)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-check: install
	$(BIN)/python -m pytest tests/test_documents.py

kill-matrix: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/training/kill_matrix.py --output benchmarks/results/kill_matrix.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/explanation/kill_matrix.py --output benchmarks/results/explain_kill_matrix.json

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
