# Everything a maintainer types. CI runs `make test`, and nothing else. As root, or as a user who may use sudo: cargo
# runs as that user then, and by sudo only what needs it.

SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
E2E := $(SUDO) target/release/understudy-e2e
OUT := out

# After `sudo make`, Rust is often where only the user finds it.
ifeq ($(if $(SUDO_USER),$(shell command -v cargo),found),)
RUST_USER_HOME := $(shell getent passwd $(SUDO_USER) | cut -d: -f6)
export PATH := $(PATH):$(RUST_USER_HOME)/.cargo/bin
export RUSTUP_HOME := $(RUST_USER_HOME)/.rustup
endif

.PHONY: demo test lint unit sim chart image mutants e2e soak torture bench captures tshark fuzz deny setup build k8s

# A copy that survives the death of its node, on two real Samba servers of its own. Needs root.
demo: setup build
	$(E2E) demo

# What CI runs: each case once, on small data.
test: export UNDERSTUDY_REQUIRE_ETCD := 1
test: setup lint unit sim chart e2e

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	tests/purity.sh

# Without etcd on the machine what needs it is left out, loudly; in `make test` that is a failure.
unit:
	cargo test --workspace --all-features --locked --quiet

# Seeds of the simulator (RUNS=, FROM=); stops at the first that breaks a rule, and tells its story. COVERAGE= says how often
# every row of the replay table and every stage of a takeover has to be hit; without RUNS=, 10 times.
sim:
	cargo run --release --locked --quiet -p understudy-sim -- run --runs $(or $(RUNS),20000) --from $(or $(FROM),0) \
		$(if $(COVERAGE)$(if $(RUNS),,1),--require-coverage $(or $(COVERAGE),10))

# Faults that are made on purpose, one against each invariant: the simulator has to find every one (RUNS= seeds at most).
# MUTANT= picks by a part of the name. Never in CI.
mutants:
	RUNS=$(or $(RUNS),50000) tests/sim/mutants/run.sh $(MUTANT)

# The Helm chart: lint, renders, the schemas of Kubernetes, unit tests, wrong values, and its configuration against the binary.
chart: k8s
	UNDERSTUDY_BIN=target/debug/understudy tests/chart.sh

# The image of the proxy, by its Containerfile, from bases of Debian's packages instead of the public ones. Needs buildah and
# mmdebstrap. Never in CI.
image:
	$(SUDO) tests/image.sh

e2e: build k8s
	$(E2E) run

# The repeated counts, resumable; results in out/soak. CASE= picks cases by a part of their name, RUNS= overrides the counts.
soak: setup build k8s
	$(E2E) soak $(if $(CASE),$(CASE)) $(if $(RUNS),--runs $(RUNS)) --out $(OUT)/soak

# smbtorture's tests of SMB2, through the proxy too; WAY=same or other: while nodes are lost after every k-th answer
# (EVERY=); WAY=bridge or gone: in Bridge from the start, and with nodes that die when clients leave. TEST= picks tests by
# parts of their names. Resumable; results in out/torture. Part of soak.
torture: setup build
	$(E2E) torture $(TEST) --way $(or $(WAY),proxy) --every $(or $(EVERY),7) --out $(OUT)/torture

# Direct Samba, HAProxy and Understudy side by side. Never in CI.
bench: setup build
	$(E2E) bench --out $(OUT)/bench
	cargo run --release --locked --quiet -p smb-parse --example parse_bench

# Parses the captures of a directory (DIR=) and names what the parser does not know. ERRORS= says how many messages in
# them are wrong on purpose.
captures:
	cargo run --release --locked --quiet -p understudy-e2e -- captures --expect-errors $(or $(ERRORS),0) $(DIR)

# Compares what the parser and tshark say of the captures of a directory (DIR=), message by message.
tshark:
	cargo run --release --locked --quiet -p understudy-e2e -- tshark $(DIR)

# Damaged frames, for as many seconds (SECONDS=).
fuzz:
	cargo run --profile fuzz --locked --quiet -p smb-parse --example fuzz -- $(or $(SECONDS),60)

# Licences and advisories; needs cargo-deny (cargo install cargo-deny).
deny:
	cargo deny --all-features check licenses bans sources

# Debian packages that the tests and the demo use; installs what is missing. Needs root.
setup:
	tests/setup.sh

build:
	cargo build --release --locked -p understudy -p understudy-e2e

# The proxy with what a cluster needs, for the chart's checks and the case containers-ha.
k8s:
	cargo build --locked -p understudy --features k8s
