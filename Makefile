# make help says what there is.
.DEFAULT_GOAL := help
.PHONY: help run ui test test-all bench-demo bench-pii bench-corpus bench-deduplicate lint format lock clean

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/.ready

RECIPE ?= recipes/demo.yaml
ROOT ?= .crawl2chat/data
PORT ?= 8080
WARCS ?=
CRAWL ?=
MAX_WARCS ?=
FORCE ?=
SET ?=
RUN_OPTIONS = --recipe "$(RECIPE)" --root "$(ROOT)" --port "$(PORT)" $(if $(WARCS),--warcs $(foreach w,$(WARCS),"$(w)")) \
  $(if $(CRAWL),--crawl "$(CRAWL)") $(if $(MAX_WARCS),--max-warcs "$(MAX_WARCS)") $(if $(FORCE),--force) $(if $(SET),--set $(SET))

help: ## say what the targets do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  RECIPE=$(RECIPE) ROOT=$(ROOT) PORT=$(PORT) WARCS= CRAWL= MAX_WARCS= FORCE=1 SET=\"rl.steps=9\""

$(READY): requirements.lock pyproject.toml local/setup.sh
	@bash local/setup.sh
	@touch $@

run: $(READY) ## the whole road: from WARC files to a chat model (WARCS=… or CRAWL=… for other pages than the sample)
	@python -m local.run $(RUN_OPTIONS)

ui: $(READY) ## start Airflow and stay, to trigger DAGs by hand
	@python -m local.run --ui --port "$(PORT)" --root "$(ROOT)"

test: $(READY) ## the tests
	@python -m pytest -m "not slow" $(ARGS)

test-all: $(READY) ## the slow tests too: whole runs, kills
	@python -m pytest -m slow $(ARGS)

bench-demo: $(READY) ## what the demo's model learns, with three seeds (about 25 minutes)
	@python -m bench.demo $(ARGS)

bench-pii: $(READY) ## recall and precision of redaction on labelled texts
	@python -m bench.pii $(ARGS)

bench-deduplicate: $(READY) ## near-duplicates among five million synthetic signatures
	@python -m bench.deduplicate $(ARGS)
bench-corpus: $(READY) ## the corpus road beside datatrove's, CPU seconds and agreement
	@python -m bench.corpus $(ARGS)

lint: $(READY) ## ruff, mypy --strict
	@ruff check . && ruff format --check . && mypy

format: $(READY) ## format the code
	@ruff check --fix . ; ruff format .

lock: ## make requirements.lock anew from pyproject.toml
	@bash local/setup.sh lock

clean: ## remove .venv, artifacts and Airflow's state
	rm -rf .venv .crawl2chat
