# The verbs of development. "make" alone lists them. Nothing is needed but Go; make itself is a convenience.

FUZZTIME ?= 30s
OPS      ?= 200000
KILLS    ?= 1000
ROUNDS   ?= 20
STRESS   ?= 5m
SEEDS    ?= 500
SEED     ?= $$(date +%s)
FOR      ?=
ROWS     ?= .
PROFILES ?= profiles
TARGETS  ?= .
SAMPLES  ?=

.PHONY: help build cluster test check race fuzz oracle crash faults sim stress soak nightly bench profile docs

help: ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## build bin/coterie
	go build -o bin/coterie ./cmd/coterie

cluster: build ## run a cluster of three processes until Ctrl-C
	scripts/cluster

test: ## run all tests
	go test ./... && go -C tests test -count 1 -p 1 ./...

check: ## run what CI runs: formatting, vet, staticcheck, all tests
	.ci/run

race: ## run the tests under the race detector (needs a C compiler)
	go test -race ./...

fuzz: ## run every fuzz target for FUZZTIME each (30s), or those of TARGETS (a pattern), and print what came of each
	scripts/fuzz $(FUZZTIME) '$(TARGETS)'

oracle: ## compare with a real etcd for OPS operations (200000), from a new seed
	go -C tests test ./oracle -count 1 -timeout 0 -args -oracle.ops=$(OPS)

crash: ## kill the server KILLS times (1000) under load and check every promise
	go -C tests test ./crash -count 1 -timeout 0 -v -args -crash.rounds=$(KILLS) -crash.seed=$$(date +%s)

faults: ## hurt clusters for ROUNDS rounds (20) of a minute, from a new seed, and check every promise (needs root)
	COTERIE_TEST_NETWORK=1 go -C tests test ./cluster -count 1 -timeout 0 -v -run '^TestFaults$$' -args -cluster.rounds=$(ROUNDS) -cluster.duration=1m -cluster.seed=$$(date +%s)

sim: ## simulate clusters under all faults, SEEDS seeds (500) from SEED (a new one), or for FOR (1h, say)
	go test ./sim -count 1 -timeout 0 -v -run '^TestSeeds$$' -args -sim.seed=$(SEED) $(if $(FOR),-sim.for=$(FOR),-sim.seeds=$(SEEDS))

stress: ## run consensus under all faults at once, in simulated time, for STRESS (5m), from a new seed
	go test ./consensus -count 1 -timeout 0 -run '^TestStress$$' -consensus.stress=$(STRESS) -consensus.seed=$$(date +%s)

soak: ## use a cluster for FOR (10m), kill its members, and look for what grows; samples go to SAMPLES, a file
	go -C tests test ./soak -count 1 -timeout 0 -v -run '^TestSoak$$' -args -soak.for=$(or $(FOR),10m) -soak.seed=$(SEED) $(if $(SAMPLES),-soak.samples=$(abspath $(SAMPLES)))

nightly: ## run sim, fuzz, stress, faults and soak, each for its time, some five hours in all, and summarize (needs root)
	scripts/nightly

bench: ## measure against etcd, ROWS of "part: load" (all), and write docs/benchmarks.md (about 40 minutes)
	go run ./bench/compare --rows '$(ROWS)' --page docs/benchmarks.md
	@[ '$(ROWS)' != . ] || go run ./bench/compare --parts catch-up --duration 20s --page docs/benchmarks.md

profile: ## record CPU and allocation profiles of Coterie under load into PROFILES (profiles)
	go run ./bench/compare --profile $(PROFILES)

docs: ## write docs/flags.md from the table of flags
	COTERIE_WRITE_DOCS=1 go test ./cmd/coterie -count 1 -run '^TestReferenceIsUpToDate$$'
