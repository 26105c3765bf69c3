# Guestlift: see README.md. `make demo` and `make test` do all the set-up that they need.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

.PHONY: all build setup demo test test-guests xen-host fuzz check bench install deb clean

all: build

# What building, testing and the demo need, installed once.
setup:
	@scripts/setup

build:
	$(CARGO) build --release --workspace --bins
	scripts/build-agent

# A real Xen guest is made, wrapped as an XVA, converted, and its result booted.
demo: setup build
	@scripts/demo

# Formatting and lints.
check: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# Every test, those that boot converted guests included. The appliance runs in QEMU here, and on KVM in tests/kvm-host.
test: setup
	scripts/build-agent
	# Guests wait for the network while the compiler does not.
	scripts/make-guest --all >/dev/null & $(CARGO) test --workspace --no-run && wait $$!
	GUESTLIFT_ACCEL=tcg $(CARGO) test --workspace --no-fail-fast
	# Above, appliances continued a template; here the same ones boot.
	GUESTLIFT_ACCEL=tcg GUESTLIFT_TEMPLATES=off $(CARGO) test --workspace --test appliance -- commands:: files:: trouble::

# Every guest of tests/fixtures/guests: made, converted and booted. An hour, where `make test` takes the quickest of them. And a batch as
# a job array of a Slurm cluster on this machine, which loses a node.
test-guests: setup
	scripts/build-agent
	$(CARGO) test --workspace --no-fail-fast --test v2v_batch -- --ignored
	GUESTLIFT_ACCEL=tcg $(CARGO) test --workspace --no-fail-fast --test e2e -- --include-ignored mechanisms::
	GUESTLIFT_ACCEL=tcg $(CARGO) test --workspace --test virt_hostile -- --include-ignored

# A Xen 4.17 host, emulated, starts guests as they were and as `--to hvm` makes them: minutes each.
xen-host: setup
	scripts/build-agent
	GUESTLIFT_ACCEL=tcg $(CARGO) test --workspace --test e2e -- --ignored --test-threads 1 on_a_xen_host

# Every fuzz target for SECONDS, from a seed of its own each time; `make test` gives them moments.
SECONDS ?= 300
fuzz: setup
	GUESTLIFT_FUZZ_SECONDS=$(SECONDS) GUESTLIFT_FUZZ_SEED=$$(date +%s) $(CARGO) test -p tools --test fuzz

# Side by side with qemu-img, libguestfs and virt-v2v.
bench: setup build
	@scripts/bench --install
	@scripts/bench-appliance
	@scripts/bench-img

install: build
	@scripts/install "$(DESTDIR)" "$(PREFIX)"

# target/guestlift_VERSION_amd64.deb
deb: setup build
	@scripts/make-deb

clean:
	$(CARGO) clean
