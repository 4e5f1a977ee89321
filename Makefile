# fedprune: make run, make test; `make help` lists the rest. Needs Python 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?= +experiment=lth_fedavg -m

.DEFAULT_GOAL := help
.PHONY: help install run test lint taxonomy taxonomy_grid bench notebooks clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## the environment in .venv

run: $(STAMP)  ## the main job: the lottery ticket grid inside FedAvg, on data that comes along (ARGS= changes it)
	$(BIN)/python -m fedprune $(ARGS)

test: $(STAMP)  ## all tests, one process per core
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n auto

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

taxonomy: $(STAMP)  ## draw docs/taxonomy.svg, the figure at the top of the README, from conf/
	$(BIN)/python -m fedprune.analysis.taxonomy

taxonomy_grid: $(STAMP)  ## run the grid over the taxonomy, 3 seeds (15 minutes on 2 cores), and fill docs/taxonomy_grid.md with it
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,sweep]'
	$(BIN)/python -m fedprune +experiment=taxonomy_grid seed=0,1,2 hydra/launcher=joblib executor=serial -m
	cp outputs/taxonomy_grid/figures/accuracy_taxonomy.png docs/taxonomy_grid.png
	sed '/^<!-- tables/q' docs/taxonomy_grid.md > docs/taxonomy_grid.new
	cat outputs/taxonomy_grid/taxonomy.md >> docs/taxonomy_grid.new
	mv docs/taxonomy_grid.new docs/taxonomy_grid.md

bench: $(STAMP)  ## rounds and start-up against a bare PyTorch loop (Fashion-MNIST); shrink; compacted steps and jobs; what scoring costs
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/shrink.py
	$(BIN)/python benchmarks/compact.py
	$(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/personal.py

notebooks: $(STAMP)  ## execute the notebooks on the newest sweep of outputs/lth_fedavg
	$(BIN)/python -m jupyter nbconvert --to html --execute notebooks/*.ipynb --output-dir outputs/notebooks

clean:  ## remove the environment and caches; results in outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist
