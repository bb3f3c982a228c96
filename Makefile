# The whole menu. `make dev` starts a cluster, `make test` runs every test; both install what they need.
SHELL := /bin/bash
PACKAGES := clang g++ make libclang-dev
GUEST_PACKAGES := rustc-web cargo-web rust-web-src wasi-libc
# One target folder for all clones where there is one; see ARCHITECTURE.md, "Building".
SHARED_TARGET := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wherry/target
TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO := cargo --locked
# Fail where these would be left out of the binary.
REQUIRED := WHERRY_UI_REQUIRED=1 WHERRY_TOOLBOX_REQUIRED=1
# Always the whole workspace: with fewer packages, or without the above, cargo compiles much anew.
TEST := $(REQUIRED) $(CARGO) test --release --workspace
# Our own code without optimisation, compiled in a third of the time.
QUICK := $(TEST) --config tests/harness.toml
APPS := sample-apps/dist
# Tests with real processes wait more than they compute: twice as many at a time as there are processors.
THREADS := $(shell echo $$((2 * $$(nproc))))
# RocksDB's headers are parsed once; see there.
export PATH := $(CURDIR)/tests/compilers:$(PATH)

.PHONY: dev test quick test-slow test-s3 fuzz clients verify fix sim bless apps dashboard screenshots build bench chaos chaos-seeded power-cuts flipped-bit attacks autonomy traffic setup

dev: build ## Build everything and start a cluster
	exec $(TARGET)/release/wherry dev --images $(APPS) $(ARGS)

build: setup apps dashboard ## The binary: release/wherry in the target folder
	$(REQUIRED) $(CARGO) build --release --workspace

# The output goes through `tee`, for what failed to be said again at the end, and not through a pipe: make would
# wait for a process that a test has left behind.
test: quick ## All tests, with real processes and kubectl
	tests/install-packages chromium bind9-dnsutils docker-registry
	@for one in curl openssl; do command -v $$one >/dev/null || tests/install-packages $$one || exit 1; done
	@python3 -c 'import ensurepip, venv' 2>/dev/null || tests/install-packages python3-venv
	cd web-dashboard && npm run --silent check
	WHERRY_L3=1 $(QUICK) --no-fail-fast --lib --bin wherry --test it -- --test-threads $(THREADS) \
		> >(tee $(TARGET)/tests.txt) || { sleep 5; tests/failures $(TARGET)/tests.txt; exit 1; }
	cd sample-apps && RUST_MIN_STACK=8388608 $(CARGO) test -p batch -p toolbox --target-dir $(abspath $(TARGET))/apps
	$(MAKE) test-s3

# The `wherry` that the tests start.
quick: setup apps dashboard
	$(REQUIRED) $(CARGO) build --release --workspace --bin wherry --config tests/harness.toml

test-s3: ## Backups to a bucket, against a server that speaks S3 (moto, from PyPI)
	tests/s3-server env $(QUICK) --lib -- rounds_in_a_bucket

test-slow: test sim ## All tests and the long simulation

clients: ## The clients that tests drive: kubectl, helm, those of Python and JavaScript
	@tests/install-clients

fuzz: ## Damaged input for everything that reads input: make fuzz MINUTES=10 (for each target)
	WHERRY_FUZZ_MINUTES=$(or $(MINUTES),1) $(QUICK) --lib fuzz:: -- --nocapture --test-threads $(THREADS)

sim: ## 2,000 simulated clusters, or one of them step by step: make sim SEED=7
	WHERRY_SIM_LONG=1 WHERRY_SIM_SEED=$(SEED) $(QUICK) --test it sim:: -- --nocapture

# A run is the seed's: the same SEED, MINUTES and MODE do the same faults at the same times again.
chaos: build ## Three members, faults, proof: make chaos MINUTES=20 SEED=7 MODE=kills|mixed|both
	$(TARGET)/release/chaos --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1) --mode $(or $(MODE),kills) $(ARGS)

chaos-seeded: build ## The suite must find bugs made on purpose; prints which check did, and when
	$(REQUIRED) $(CARGO) build --release --workspace --bin wherry --features wherry-store/seeded-bugs,wherry-store/failpoints
	cp $(TARGET)/release/wherry $(TARGET)/release/wherry-seeded
	$(REQUIRED) $(CARGO) build --release --workspace
	$(TARGET)/release/chaos --seeded --binary $(TARGET)/release/wherry-seeded $(ARGS)

power-cuts: build ## The power cut behind every fsync: of one member, torn, and of three members
	$(TARGET)/release/chaos --power-cut $(ARGS)
	$(TARGET)/release/chaos --power-cut --torn $(or $(SEED),1) $(ARGS)
	$(TARGET)/release/chaos --power-cut --members 3 $(ARGS)

flipped-bit: build ## Flipped bits in a follower's files and memory are found: make flipped-bit SEED=7
	$(TARGET)/release/chaos --flipped-bit --seed $(or $(SEED),1) $(ARGS)

attacks: build ## Hostile guests beside a neighbour: what stopped each, the neighbour's p99; ARGS="--only loop"
	$(TARGET)/release/attacks $(ARGS)

autonomy: build ## Agent, worker, control plane, machine lost under load: requests counted; ARGS="--away 300"
	$(TARGET)/release/autonomy $(ARGS)

traffic: build ## Rolling updates under requests, who reaches whom, samples: three tables; ARGS="--updates 5"
	$(TARGET)/release/traffic $(ARGS)

verify: ## Read-only checks: formatting, lints, the tidy test
	$(CARGO) fmt --all --check && $(REQUIRED) $(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(QUICK) --test it tidy::

fix: ## Format, and apply the lints' own fixes
	$(CARGO) fmt --all && $(REQUIRED) $(CARGO) clippy --release --workspace --all-targets --fix --allow-dirty

bless: ## Rewrite the snapshots of what users see; review the diff
	UPDATE_EXPECT=1 $(QUICK) --lib --bin wherry --test it

apps: setup ## The sample guests: sample-apps/dist/NAME.wasm
	@rustup target add wasm32-wasip1 >/dev/null 2>&1 || tests/install-packages $(GUEST_PACKAGES)
	$(CARGO) run --release --quiet --manifest-path sample-apps/Cargo.toml --target-dir $(abspath $(TARGET))/apps

dashboard: web-dashboard/dist/index.html ## The web dashboard: web-dashboard/dist

# Only when a source changed: a new dist makes cargo compile the binary anew.
web-dashboard/dist/index.html: web-dashboard/node_modules $(shell git ls-files web-dashboard)
	cd web-dashboard && npm run --silent build

screenshots: quick ## Every page of the dashboard in both themes and at 360 px: SHOTS=folder
	tests/install-packages chromium
	WHERRY_SCREENSHOTS=$(abspath $(or $(SHOTS),screenshots)) WHERRY_L3=1 \
		$(QUICK) --test it -- --nocapture dashboard::

web-dashboard/node_modules: web-dashboard/package-lock.json
	cd web-dashboard && npm ci --no-audit --no-fund && touch node_modules

bench: build ## Benchmarks, all or some: make bench ARGS="--parts store,etcd"; writes bench-results.json
	tests/install-packages wrk etcd-server $(if $(findstring ingress,$(ARGS)),nginx haproxy)
	$(TARGET)/release/bench --target $(TARGET) $(ARGS)

setup:
	@tests/install-packages $(PACKAGES)
	@[ -n "$$CARGO_TARGET_DIR" ] || [ -e target ] || [ ! -d $(SHARED_TARGET) ] || ln -s $(SHARED_TARGET) target
