# Bowline: everything one types. `make test` is what CI runs.

BUILD := build
CARGO ?= cargo
DENY := $(BUILD)/tools/bin/cargo-deny
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
SCRIPTS := $(shell git ls-files -co --exclude-standard -- '*.sh' .ci/run)

.PHONY: help run demo test check fmt clippy docs deny scripts doctest suite tools tools-check \
	guest bench bench-limits man install soak clean

help:
	@echo 'make run     a disk server with an embedded pool in ./bowline-data'
	@echo 'make demo    a guest lives through kill -9 of everything, told in words and figures'
	@echo 'make test    all checks and tests, as CI runs them'
	@echo 'make tools   install what the tests need (Debian packages; asks for root)'
	@echo 'make bench   one table against qemu-nbd, nbdkit and the physical limit; about an hour'
	@echo 'make bench-limits   memory, start, recovery, stalls, space: a quarter of an hour, 25 GiB'
	@echo 'make man     manual pages and completions, into $(BUILD)/man and $(BUILD)/completions'
	@echo 'make soak PART=name   the long proofs, one part at a time'

run:
	$(CARGO) run --release --quiet -p bowline -- serve

demo: tools-check guest
	$(CARGO) build --release --quiet -p bowline
	$(CARGO) run --release --quiet -p bowline-testbed --bin demo

# The suite comes last, so that the runner's own summary is the last thing said.
test: tools-check check doctest guest
	$(MAKE) --no-print-directory suite

check: fmt clippy docs deny scripts

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet

deny: $(DENY)
	$(DENY) --workspace --log-level error check licenses bans sources

# Built without optimisation: it runs for a second and takes minutes to optimise.
$(DENY):
	$(CARGO) install cargo-deny --version '^0.20' --locked --debug --quiet \
		--root $(BUILD)/tools --target-dir $(BUILD)/tools/target
	rm -rf $(BUILD)/tools/target

scripts:
	shellcheck $(SCRIPTS)

doctest:
	$(CARGO) test --workspace --doc --quiet

suite:
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace
else
	$(CARGO) test --workspace --all-targets
endif

tools:
	tests/tools.sh install

tools-check:
	@tests/tools.sh check

guest:
	guest/build.sh

bench: tools-check
	$(CARGO) build --release --quiet -p bowline
	bench/run.sh

bench-limits: tools-check
	$(CARGO) build --release --quiet -p bowline
	bench/run.sh limits

man:
	$(CARGO) run --quiet -p bowline -- manual $(BUILD)

soak:
	tests/soak.sh $(PART)

clean:
	rm -rf $(BUILD)
