# What there is: `make help`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Settings of `make demo`; each can be given: make demo INFLUENCERS=100000 FOR=230s
INFLUENCERS ?= 10000
FOR ?=
CLICKHOUSE_PORT ?= 8123
API_PORT ?= 3000
STATUS_PORT ?= 8080

.PHONY: help setup build demo test chaos chaos-short bench bench-short bench-checkpoints bench-million lint clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: ## Check for the tools and fetch the embedded ClickHouse
	@scripts/setup $(TOOLS_OF)

build: setup ## Build everything: target/release/{tickhouse,mockstagram} and target/udfs
	@echo "==> building (the first time takes about 20 minutes on two cores)"
	cargo build --release --workspace
	udfs/build

demo: build ## Run the influencer pipeline with all it needs; Ctrl-C stops it [INFLUENCERS=n FOR=230s]
	@exec target/release/tickhouse up --path target/demo --influencers $(INFLUENCERS) $(if $(FOR),--for $(FOR)) \
		--clickhouse-port $(CLICKHOUSE_PORT) --api-port $(API_PORT) --status-port $(STATUS_PORT)

# What only the tests need is missed before the build, not after it.
test: TOOLS_OF = tests
test: build ## Run every check and test; ends with one line, N passed, N failed
	@scripts/test

chaos: build ## Kill and restart the influencer pipeline under load [CHAOS_KILLS=50 CHAOS_SEED=n]
	CHAOS_KILLS=$${CHAOS_KILLS:-50} cargo test --release -p tickhouse-tests --test end_to_end chaos:: -- --nocapture

chaos-short: build ## The same, with 5 kills: what make test runs
	cargo test --release -p tickhouse-tests --test end_to_end chaos:: -- --nocapture

bench: build ## Measure everything, each figure beside what it is compared to; the report is target/bench/report.md
	target/release/tickhouse bench all --flame-graph

bench-short: build ## The same with less work: a few minutes
	target/release/tickhouse bench all --short

bench-checkpoints: build ## What checkpoints cost: throughput with and without, time and bytes, a restart
	target/release/tickhouse bench checkpoints

bench-million: build ## The main job at full size, real minutes; fails unless every minute was whole [MINUTES=5 INFLUENCERS=1000000 FETCH_SPREAD=50]
	target/release/tickhouse bench million --flame-graph --minutes $(or $(MINUTES),5) \
		--influencers $(if $(filter command line environment,$(origin INFLUENCERS)),$(INFLUENCERS),1000000) \
		$(if $(FETCH_SPREAD),--fetch-spread $(FETCH_SPREAD))

lint: ## Only the formatter, clippy and the documentation
	@scripts/test lint

clean: ## Remove what was built (the fetched ClickHouse engine stays in its cache)
	rm -rf target
