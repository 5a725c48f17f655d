# make demo   explain, train, classify, explain again on generated images, from nothing to demo/report.html
# make test   what a change must pass: quality and all tests

PYTHON ?= python3
PYTEST_WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO_INSTALLED := .venv/.installed-demo
# A venv that was interrupted while it was made is made again.
MAKE_VENV := $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
FLOOR_TESTS := tests/models tests/pipelines tests/test_options.py tests/test_guidance.py tests/training/test_checkpoints.py \
	tests/hub/test_community_pipelines.py

.DEFAULT_GOAL := help
.PHONY: help install bundle figures-page notebooks docs wheel-check demo demo-full tables phantom-checkpoint test test-floors quality style docs-check kill-matrix clean

help:
	@echo "make demo        the whole road on generated images, in minutes: demo/report.html"
	@echo "make demo-full   the same with more images and longer training: demo-full/report.html"
	@echo "make tables      the paper's tables and figures from the demo's runs: demo/tables/reproduction.md"
	@echo "make phantom-checkpoint  train the checkpoint that comes with the package again; an hour or two"
	@echo "make test        quality and all tests"
	@echo "make test-floors tests of models, pipelines and checkpoints with the oldest versions that setup.cfg allows"
	@echo "make quality     ruff and mypy, changing nothing"
	@echo "make bundle      write pipelines/*.py anew, after a change of what they are generated from"
	@echo "make figures-page write docs/figures.md, the README's table and the small runs' cards anew from benchmarks/results"
	@echo "make docs        these documents and the API reference as pages: docs/_build/html/index.html"
	@echo "make notebooks   run the notebooks and keep what they show"
	@echo "make wheel-check wheel and sdist in fresh environments: import, commands, an explanation without network"
	@echo "make style       let ruff format and mend"
	@echo "make kill-matrix kill runs at random moments, start them again, compare bit for bit; some minutes"
	@echo "make docs-check  links and Python examples of the documents"
	@echo "make clean       remove what builds and checks leave behind (not .venv, demo/ or runs/)"

install: $(INSTALLED)

# Runs again only when the requirements changed.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# Only what the demo needs; its modules are compiled when they are first imported, and the others never.
$(DEMO_INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(MAKE_VENV)
	test -e $(INSTALLED) || $(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[training]"
	touch $@

demo: $(DEMO_INSTALLED)
	$(BIN)/python -m mediffusion_diffusers demo

demo-full: $(DEMO_INSTALLED)
	$(BIN)/python -m mediffusion_diffusers demo --full --output_dir demo-full

# The paper's tables and figures at the demo's size; the demo is made first unless it is there.
DEMO := demo
tables: $(DEMO_INSTALLED)
	test -f $(DEMO)/report.html || $(BIN)/python -m mediffusion_diffusers demo --output_dir $(DEMO)
	$(BIN)/python -m mediffusion_diffusers reproduce --run $(DEMO) --model $(DEMO)/mediffusion-phantom \
		--dataset_dir $(DEMO)/phantoms --oracle_path $(DEMO)/oracle --output_dir $(DEMO)/tables \
		--num_inference_steps 20 --device cpu

# The checkpoint of mediffusion_diffusers.examples: an hour or two on two cores; goes on where it was stopped.
PHANTOM_RUN := runs/phantom
PHANTOM_BOX := mediffusion_diffusers/examples/phantom
phantom-checkpoint: install
	test -d $(PHANTOM_RUN)-data || $(BIN)/python training/prepare_dataset.py phantom --output_dir $(PHANTOM_RUN)-data \
		--image_size 64 --num_train 10000 --num_validation 400 --num_test 1000
	test -f $(PHANTOM_RUN)-10pct.json || $(BIN)/python training/prepare_dataset.py split --dataset_dir $(PHANTOM_RUN)-data \
		--share 10 --by patient --output $(PHANTOM_RUN)-10pct.json
	$(BIN)/python training/train_joint.py --preset phantom --dataset_dir $(PHANTOM_RUN)-data \
		--labelled_split $(PHANTOM_RUN)-10pct.json --output_dir $(PHANTOM_RUN) --resume_from_checkpoint latest
	$(BIN)/python -m mediffusion_diffusers.commands.box_checkpoint --pretrained_model_name_or_path $(PHANTOM_RUN)
	$(BIN)/python training/calibrate_guidance.py --pretrained_model_name_or_path $(PHANTOM_BOX) \
		--dataset_dir $(PHANTOM_RUN)-data --quality best
	$(BIN)/python training/evaluate_classification.py --pretrained_model_name_or_path $(PHANTOM_BOX) \
		--dataset_dir $(PHANTOM_RUN)-data --output_dir $(PHANTOM_RUN)-results
	test -d $(PHANTOM_RUN)-oracle-data || $(BIN)/python training/prepare_dataset.py phantom --output_dir $(PHANTOM_RUN)-oracle-data \
		--image_size 64 --num_train 3000 --num_validation 300 --num_test 0 --seed 1000
	$(BIN)/python training/train_oracle.py --dataset_dir $(PHANTOM_RUN)-oracle-data --output_dir $(PHANTOM_RUN)-oracle \
		--max_train_steps 800 --validation_steps 200 --checkpointing_steps 200 --resume_from_checkpoint latest
	$(BIN)/python training/evaluate_counterfactuals.py --pretrained_model_name_or_path $(PHANTOM_BOX) \
		--dataset_dir $(PHANTOM_RUN)-data --oracle_path $(PHANTOM_RUN)-oracle --output_dir $(PHANTOM_RUN)-counterfactuals \
		--num_images_per_label 12
	rm -f $(PHANTOM_BOX)/.lock $(PHANTOM_BOX)/guidance_calibration.json  # evaluation/ holds the same
	$(BIN)/python docs/draw_example.py
	$(BIN)/python docs/execute_notebooks.py

test: quality
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

test-floors:
	test -x .venv-floors/bin/python || $(PYTHON) -m venv .venv-floors
	.venv-floors/bin/python -m pip install -c constraints-floors.txt -e ".[training,dicom]" pytest
	OMP_NUM_THREADS=1 .venv-floors/bin/python -m pytest $(FLOOR_TESTS)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bundle: install
	$(BIN)/python -m mediffusion_diffusers.publishing.single_file pipelines

figures-page: install
	$(BIN)/python benchmarks/figures_page.py
	$(BIN)/python benchmarks/cards.py

notebooks: install
	$(BIN)/python docs/execute_notebooks.py

docs: install
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

wheel-check: install
	$(BIN)/python tests/check_wheel.py $(PYTHONS)

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-check: install
	$(BIN)/python -m pytest tests/test_documents.py

kill-matrix: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/training/kill_matrix.py --output benchmarks/results/kill_matrix.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/explanation/kill_matrix.py --output benchmarks/results/explain_kill_matrix.json

clean:
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
