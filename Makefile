# make help says what there is.
.DEFAULT_GOAL := help
.PHONY: help run ui chat explain inspect shell test test-gate test-all bench-demo bench-pii bench-extraction bench-corpus bench-deduplicate bench-simulate-dedup bench-scale bench-tokenizer bench-loader bench-memorization bench-train bench-gpu bench-backfill chart tag images push backup smoke lint audit format lock clean

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
READY := .venv/.ready
OP := .crawl2chat/torch_extensions/.ready

RECIPE ?= recipes/demo.yaml
ROOT ?= .crawl2chat/data
PORT ?= 8080
WARCS ?=
CRAWL ?=
URL ?=
STAGE ?= filter
MAX_WARCS ?=
FORCE ?=
SET ?=
RUN_OPTIONS = --recipe "$(RECIPE)" --root "$(ROOT)" --port "$(PORT)" $(if $(WARCS),--warcs $(foreach w,$(WARCS),"$(w)")) \
  $(if $(CRAWL),--crawl "$(CRAWL)") $(if $(MAX_WARCS),--max-warcs "$(MAX_WARCS)") $(if $(FORCE),--force) $(if $(SET),--set $(SET))

help: ## say what the targets do
	@grep -hE '^[a-z/.-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'
	@echo "  RECIPE=$(RECIPE) ROOT=$(ROOT) PORT=$(PORT) WARCS= CRAWL= MAX_WARCS= FORCE=1 SET=\"rl.steps=9\""

$(READY): requirements.lock pyproject.toml local/setup.sh
	@bash local/setup.sh
	@touch $@

# DeepSpeed's op for several ranks on CPUs. make run builds it beside the corpus.
$(OP): $(READY) training/launch/prebuild.py
	@echo "building DeepSpeed's CPU op (one to two minutes)"
	@python -m training.launch.prebuild
	@touch $@

run: $(READY) ## the whole road: from WARC files to a chat model (WARCS=… or CRAWL=… for other pages than the sample)
	@python -m local.run $(RUN_OPTIONS)

ui: $(READY) ## start Airflow and stay, to trigger DAGs by hand
	@python -m local.run --ui --port "$(PORT)" --root "$(ROOT)"

chat: $(READY) ## talk to the newest run's assistant
	@python -m inference.chat --root "$(ROOT)" $(ARGS)

explain: $(READY) ## every step and score of a page: make explain URL=https://…
	@test -n "$(URL)" || { echo "error: which page?"; echo "  -> make explain URL=https://…"; exit 2; } >&2
	@python -m jobs.commands.explain "$(URL)" --root "$(ROOT)" $(ARGS)

inspect: $(READY) ## what a stage's newest artifact holds: make inspect STAGE=filter
	@python -m jobs.commands.inspect "$(STAGE)" --root "$(ROOT)" $(ARGS)

shell: $(READY) ## a shell in which every python -m … of the documentation works
	@echo "the environment of $(CURDIR) is active; exit leaves it"
	@SPARK_LOCAL_IP="$${SPARK_LOCAL_IP:-127.0.0.1}" VIRTUAL_ENV="$(CURDIR)/.venv" SPARK_HOME="$$(python -c 'import pyspark; print(pyspark.__path__[0])')" PS1='(crawl2chat) \w $$ ' bash --norc -i

# Two processes, on machines of two cores and up: the jobs' tests share one Spark session, whole runs one group.
PYTEST := python -m pytest -n 2

test: $(OP) ## the tests, in minutes (docs/testing.md says what each ring holds)
	@$(PYTEST) -m "not slow" $(ARGS)

test-gate: $(OP) ## what a change must pass besides: a whole run in Airflow, one that is killed, two ranks
	@$(PYTEST) -m gate $(ARGS)

test-all: $(OP) ## everything: kills, matrices, two machines, more examples; nightly and before a release
	@HYPOTHESIS_PROFILE=all $(PYTEST) $(ARGS)

bench-demo: $(READY) ## what the demo's model learns, with three seeds (about 25 minutes)
	@python -m bench.demo $(ARGS)

bench-pii: $(READY) ## recall and precision of redaction on labelled texts
	@python -m bench.pii $(ARGS)

bench-extraction: $(READY) ## extracted text against references, by mode
	@python -m bench.extraction $(ARGS)

bench-deduplicate: $(READY) ## near-duplicates among five million synthetic signatures
	@python -m bench.deduplicate $(ARGS)

bench-simulate-dedup: $(READY) ## what deduplicating a snapshot shuffles, simulated (about 2 minutes on one core)
	@python -m bench.simulate_dedup $(ARGS)

bench-scale: $(READY) ## CPU seconds a page from 2,400 to 40,000 pages, and the JVM's share
	@python -m bench.scale $(ARGS)

bench-train: $(READY) ## a training step beside HF Trainer and bare PyTorch
	@python -m bench.train $(ARGS)

bench-gpu: $(READY) ## tokens/s and MFU of three models on a GPU
	@python -m bench.gpu $(ARGS)

bench-backfill: $(READY) ## twenty small crawls through Airflow, twice (about 25 minutes)
	@python -m bench.backfill $(ARGS)

bench-corpus: $(READY) ## the corpus road beside datatrove's, CPU seconds and agreement
	@python -m bench.corpus $(ARGS)

bench-loader: $(READY) ## the loader from a million to ten billion tokens
	@python -m bench.loader $(ARGS)

bench-memorization: $(READY) ## a model over-trained on one page, caught reciting it
	@python -m bench.memorization $(ARGS)

bench-tokenizer: $(READY) ## compression and speed of tokenizers (TIKTOKEN_CACHE_DIR for GPT-2's and GPT-4's)
	@python -m bench.tokenizer $(ARGS)

CHART_VALUES := --set image.tag=lint --set web.framedBy=https://airflow.example.org
chart: $(READY) ## lint the Helm chart, and render it for every size
	@for values in helm/crawl2chat/values*.yaml; do \
	  helm lint --strict helm/crawl2chat --values $$values $(CHART_VALUES) && \
	  helm template crawl2chat helm/crawl2chat --values $$values $(CHART_VALUES) >/dev/null || exit 1; done

REGISTRY ?=
TORCH ?= cpu
TAG = $(shell docker/tag.sh)$(if $(filter-out cpu,$(TORCH)),-$(TORCH))
IMAGE = $(if $(REGISTRY),$(REGISTRY)/)crawl2chat
tag: ## the tag that images of this working tree get: version and commit
	@echo "$(TAG)"

images: ## build the images crawl2chat-spark, -training, -airflow and -s3 (REGISTRY=…, TORCH=cu128 for GPUs); needs a container engine
	@for target in spark training airflow s3; do \
	  DOCKER_BUILDKIT=1 docker build --file docker/Dockerfile --target $$target --build-arg TORCH="$(TORCH)" \
	    --label org.opencontainers.image.version="$(TAG)" --tag $(IMAGE)-$$target:$(TAG) . || exit 1; done
	@if [ -e docker/.env ]; then sed -i '/^TAG=/d' docker/.env && echo "TAG=$(TAG)" >>docker/.env; fi
	@echo "images have the tag $(TAG)"

push: ## push those images: make push REGISTRY=registry.example.org/ml; needs a container engine
	@[ -n "$(REGISTRY)" ] || { echo "make push needs a registry: REGISTRY=registry.example.org/ml" >&2; exit 2; }
	@for target in spark training airflow; do docker push $(IMAGE)-$$target:$(TAG) || exit 1; done

BACKUP ?= backup
backup: ## copy what Compose keeps into a folder: make backup BACKUP=/mnt/backup; needs a container engine
	@docker/backup.sh "$(BACKUP)"

docker/.env: docker/.env.example ## random secrets for Compose
	@umask 077; awk 'function made(command, value) { command | getline value; close(command); return value } \
	  /^AIRFLOW_FERNET_KEY=$$/ { print $$0 made("openssl rand -base64 32 | tr +/ -_"); next } \
	  /^[A-Z0-9_]+=$$/ { print $$0 made("openssl rand -hex 24"); next } { print }' $< >$@.new
	@! grep -qE '^[A-Z0-9_]+=$$' $@.new || { rm $@.new; echo "$@ needs openssl: apt-get install openssl" >&2; exit 6; }
	@[ ! -e $@ ] || { rm $@.new; echo "$@ is older than $<: add what it lacks, then touch it" >&2; exit 2; }
	@echo "TAG=$(TAG)" >>$@.new # `make images` writes a later one
	@mv $@.new $@

smoke: $(READY) ## start those images with Compose, run the sample, kill every service (needs a container engine)
	@docker version >/dev/null || { echo "make smoke needs a docker engine (DOCKER_HOST says which)" >&2; exit 6; }
	@docker image inspect crawl2chat-airflow:$(TAG) >/dev/null || { echo "make smoke needs images: make images" >&2; exit 6; }
	@TAG=$(TAG) python -m pytest -m slow -s tests/docker/test_compose.py $(ARGS)

lint: $(READY) ## ruff, mypy --strict
	@ruff check . && ruff format --check . && mypy

audit: $(READY) ## known vulnerabilities of what is pinned; needs an index with advisories, as PyPI is
	@python -m local.audit $(ARGS)

format: $(READY) ## format the code
	@ruff check --fix . ; ruff format .

lock: ## make requirements.lock anew from pyproject.toml; needs the Internet
	@bash local/setup.sh lock

# Not `rm` alone: a model that took weeks may lie there.
clean: ## remove .venv, artifacts and Airflow's state; asks first (FORCE=1: does not)
	@if [ -d .crawl2chat/data ] && [ -z "$(FORCE)" ]; then \
	  [ -t 0 ] || { echo "error: make clean would remove the artifacts in .crawl2chat/data" >&2; \
	    echo "  -> nobody is there to be asked: make clean FORCE=1" >&2; exit 2; }; \
	  read -r -p "remove .venv and .crawl2chat, with $$(du -sh .crawl2chat/data | cut -f1) of artifacts? [y/N] " answer; \
	  [[ $$answer == [yY]* ]] || { echo "nothing was removed"; exit 1; }; fi
	rm -rf .venv .crawl2chat
