# fedprune: make run, make test; `make help` lists the rest. Needs Python 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n auto
ARGS   ?= +experiment=lth_fedavg -m
METHOD ?= lotteryfl
TUNING := $(BIN)/python -m fedprune name=benchmark_tuning rounds=30 eval_every=30 density=0.1 federated.tuned=0 hydra/launcher=joblib
BENCHMARKS := rounds overhead hooks sparse sweep scale shrink codecs personal evidence batched start_up memory

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast lint docs taxonomy verdicts taxonomy_grid home homes benchmark claims benchmark_tuning peers bench performance notebooks federation oldest newest campaign clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## the environment in .venv

run: $(STAMP)  ## the main job: the lottery ticket grid inside FedAvg, on data that comes along (ARGS= changes it)
	$(BIN)/python -m fedprune $(ARGS)

test: $(STAMP)  ## all tests, one process per core (5 to 6 minutes on 2 cores)
	$(PYTEST)

test-fast: $(STAMP)  ## those that take no whole runs and no other processes (a minute on 2 cores)
	$(PYTEST) -m "not slow"

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

taxonomy: $(STAMP)  ## draw docs/taxonomy.svg, the figure of docs/concepts/axes.md, from conf/
	$(BIN)/python docs/drawing/taxonomy.py

verdicts: $(STAMP)  ## compute the intervals and verdicts in the tables of claims of docs/, from the numbers beside them
	$(BIN)/python docs/verdicts.py

docs: $(STAMP)  ## build all pages as a site in site/, with a reference of every option
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

taxonomy_grid: $(STAMP)  ## run the grid over the taxonomy, 3 seeds (15 minutes on 2 cores), and fill docs/taxonomy_grid.md with it
	$(BIN)/python -m fedprune +experiment=taxonomy_grid seed=0,1,2 hydra/launcher=joblib -m
	cp outputs/taxonomy_grid/figures/accuracy_taxonomy.png docs/taxonomy_grid.png
	sed '/^<!-- tables/q' docs/taxonomy_grid.md > docs/taxonomy_grid.new
	cat outputs/taxonomy_grid/taxonomy.md >> docs/taxonomy_grid.new
	mv docs/taxonomy_grid.new docs/taxonomy_grid.md

home: $(STAMP)  ## one published claim under its paper's regime (METHOD=lotteryfl; 2 to 15 minutes on 2 cores); writes docs/home/METHOD.md
	$(BIN)/python -m fedprune +experiment=home/$(METHOD) hydra/launcher=joblib -m
	$(BIN)/python -m fedprune.analysis.home $(METHOD) --into docs/home

homes: $(STAMP)  ## all of them, one after the other; what is done is not run again
	for path in conf/experiment/home/*.yaml; do $(MAKE) home METHOD=$$(basename $$path .yaml) || exit; done

benchmark: $(STAMP)  ## the published federated methods compared, 3 seeds (80 minutes on 2 cores); fills docs/benchmark.md
	$(BIN)/python -m fedprune +experiment=benchmark hydra/launcher=joblib -m
	$(BIN)/python -m fedprune +experiment=benchmark_without_density hydra/launcher=joblib -m
	$(BIN)/python -m fedprune.analysis outputs/benchmark
	cp outputs/benchmark/figures/accuracy_bytes_methods.png docs/benchmark.png
	$(BIN)/python -m fedprune.analysis.claims docs/benchmark.md --runs outputs/benchmark

claims: $(STAMP)  ## judge the claims of docs/benchmark_claims.yaml again, from the values by seed in docs/benchmark_runs.csv
	$(BIN)/python -m fedprune.analysis.claims docs/benchmark.md

benchmark_tuning: $(STAMP)  ## learning rates for each of them, on validation data (35 minutes); fills docs/benchmark_tuning.md
	for sweep in benchmark benchmark_without_density; do \
	  $(TUNING) +experiment=$$sweep local.optimizer.lr=0.01,0.03,0.1,0.3 seed=0 -m || exit; \
	done
	$(TUNING) +experiment=benchmark_without_density +experiment@_global_=benchmark/scaffold,benchmark/fedavg_plain \
	  local.optimizer.lr=0.03,0.05,0.07,0.1,0.3 seed=0,1 -m
	$(BIN)/python -m fedprune.analysis outputs/benchmark_tuning
	sed '/^<!-- tables/q' docs/benchmark_tuning.md > docs/benchmark_tuning.new
	cat outputs/benchmark_tuning/tuning.md >> docs/benchmark_tuning.new
	mv docs/benchmark_tuning.new docs/benchmark_tuning.md

.venv-%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

peers: .venv-flower/.installed .venv-pfl/.installed  ## the environments of Flower and pfl-research, which the benchmarks measure too

oldest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
oldest:  ## the tests with the lowest releases that pyproject.toml allows (some GB to load; TESTS="-m 'not slow'" for the fast ones)
newest:  ## the tests with the newest releases there are (PYTHON=python3.13 takes another Python, here and above)
oldest newest:
	$(PYTHON) -m venv .venv-$@
	.venv-$@/bin/python -m pip install -q --disable-pip-version-check uv
	.venv-$@/bin/python -m uv pip install -q --python .venv-$@/bin/python --resolution $(RESOLUTION) -e '.[dev]'
	OMP_NUM_THREADS=1 WANDB_MODE=offline .venv-$@/bin/python -m pytest -n auto $(TESTS)

campaign: $(STAMP)  ## kills, damaged files, changed payloads and random configurations (MINUTES=10 SEED=0); adds up in docs/reliability.md
	MINUTES=$(or $(MINUTES),10) SEED=$(or $(SEED),0) $(BIN)/python tests/campaign

bench: $(STAMP) peers  ## speed, memory and bytes, also of a bare PyTorch loop, Flower and pfl-research (10 to 15 minutes on 2 cores)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit; done

performance: $(STAMP) peers  ## the same, put into docs/performance.md (10 to 15 minutes on 2 cores; leave them alone meanwhile)
	$(BIN)/python benchmarks/fill.py docs/performance.md $(BENCHMARKS)

notebooks: $(STAMP)  ## execute the notebooks (3 minutes on 2 cores); with their outputs they go to outputs/notebooks
	mkdir -p outputs/notebooks && cp notebooks/*.ipynb outputs/notebooks
	$(BIN)/python -m jupyter execute outputs/notebooks/*.ipynb --inplace

.venv-federation/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-federation
	.venv-federation/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[flower]' pytest
	@touch $@

federation: .venv-federation/.installed  ## a real federation: a SuperLink and three SuperNodes, whose tickets are those of executor=serial (5 minutes)
	FEDPRUNE_FEDERATION=1 OMP_NUM_THREADS=1 WANDB_MODE=offline .venv-federation/bin/python -m pytest tests/deployment

clean:  ## remove the environment and caches; results in outputs/ stay
	rm -rf $(VENV) .venv-flower .venv-pfl .venv-federation .venv-oldest .venv-newest .pytest_cache .ruff_cache .mypy_cache dist
