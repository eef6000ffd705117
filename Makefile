# Each target makes its own set-up: a fresh machine needs Python >= 3.11, make and git, and the network once.
# ARGS="…" is handed on: make test ARGS="-k order", make demo ARGS="--input /var/log".
.DEFAULT_GOAL := help
.PHONY: help demo test check soak flat bench bench-compare lock clean
PY := .venv/bin/python
SETUP := @sh requirements/setup.sh
# Tests start thousands of processes: what is compiled is kept, also where the environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE
# Most tests wait: three at a time are quicker on two cores.
JOBS ?= 3
# Of each of the three profiles of the seeded driver: 100,000 in all.
SEEDS ?= 33334

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## the main job: a team of agents mines logs, one process is killed, nothing is lost (half a minute)
	$(SETUP) run
	@$(PY) -m hivewire demo $(ARGS)

test: ## all tests, with sampled counts
	$(SETUP) dev
	@sh requirements/servers.sh
	@$(PY) -m hivewire.testing.kafka_servers
	@echo "==> all tests, $(JOBS) at a time"
	@$(PY) -m pytest -n $(JOBS) $(ARGS)

check: ## the fast one (< 60 s): format, lint, types, import contracts, unit tests, conformance on memory, a smoke of it on SQLite
	$(SETUP) dev
	@PY=$(PY) sh requirements/check.sh $(ARGS)

soak: ## 100,000 seeds, then all tests with full counts (hours); the results are kept in soak-results/
	$(SETUP) dev
	@sh requirements/servers.sh
	@$(PY) -m hivewire.testing.kafka_servers
	@mkdir -p soak-results
	@echo "==> $(SEEDS) seeds a profile of the seeded driver; results in soak-results/"
	@$(PY) -m hivewire.testing.seeded --count $(SEEDS) --keep-going 20 --no-shrink >soak-results/seeds.txt 2>&1; \
	    status=$$?; tail -n 20 soak-results/seeds.txt; exit $$status
	@echo "==> all tests, full counts; results in soak-results/"
	@HIVEWIRE_SOAK=1 $(PY) -m pytest -n $(JOBS) --timeout 7200 --junit-xml "soak-results/$$(date -u +%Y-%m-%dT%H%M%SZ).xml" $(ARGS)

flat: ## is what is in use flat at 500 messages a second? Ten minutes; less with ARGS="--seconds 60 --on memory,sqlite,redis"
	$(SETUP) dev
	@sh requirements/servers.sh
	@$(PY) -m benchmarks.soak $(ARGS)

bench: ## speed beside raw loops, libraries and frameworks: table, JSON and plots in benchmarks/results/ (10 minutes at most)
	$(SETUP) run
	$(SETUP) bench
	@$(PY) -m benchmarks $(ARGS)

bench-compare: ## CPU a message over the raw loop, 7 rounds, against benchmarks/baseline.json: exit 1 when it has grown by a quarter
	$(SETUP) run
	@$(PY) -m hivewire bench --protocol memory --protocol sqlite --workload W1,W2,W3,W5,W6 --rounds 7 --scale 0.5 --tolerance 25 --compare benchmarks/baseline.json $(ARGS)

lock: ## resolve the requirements again: pinned, with hashes, without addresses (needs the network)
	$(SETUP) dev
	@PY=$(PY) sh requirements/lock.sh

clean: ## remove the environment, the caches and what runs left behind
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build out hivewire-demo
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	rm -f hivewire.db hivewire.db-wal hivewire.db-shm
