# machined: build, install and test. `make help` lists the targets.
PREFIX   ?= /usr
DESTDIR  ?=
GO       ?= go
CC       ?= cc
FUZZTIME ?= 5s
BENCH    ?= .
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BIN      ?= $(CURDIR)/bin
PROGRAMS  = machined machinectl importctl machine-spawn machine-importd
MULTIARCH ?= $(shell $(CC) -print-multiarch 2>/dev/null)
INSTALL   = DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" MULTIARCH="$(MULTIARCH)" BIN="$(BIN)" sh scripts/install.sh

export CGO_ENABLED = 0

.PHONY: all build nss wait install uninstall demo test test-unit test-root integration test-vm bench crash mkosi soak faults fuzz lint man clean help $(PROGRAMS)

all: build

build: $(PROGRAMS) nss wait ## build every program and the NSS module into bin/

$(PROGRAMS):
	@mkdir -p bin
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/$@ ./cmd/$@

nss: ## build libnss_mymachines.so.2
	@mkdir -p bin
	@$(MAKE) --no-print-directory -C nss OUT=$(CURDIR)/bin CC="$(CC)"

wait: ## build machine-wait, which stands by machines
	@mkdir -p bin
	@$(MAKE) --no-print-directory -C wait OUT=$(CURDIR)/bin CC="$(CC)"

install: ## install over stock's programs (DESTDIR=, PREFIX=/usr); on Debian stock's are diverted
	@$(INSTALL) install

uninstall: ## remove what install has put there, and bring stock's back
	@$(INSTALL) uninstall

demo: ## boot a Debian system as a machine and show it around (root)
	@scripts/demo.sh

test: ## every test: unit, root, booted hosts (root)
	@scripts/test.sh root integration

test-unit: ## tests that need nothing
	@scripts/test.sh unit

test-root: ## tests that need root
	@scripts/test.sh root

integration: ## tests in booted hosts (root)
	@scripts/test.sh integration

test-vm: build nss ## tests in a virtual machine: limits, Verity, LUKS, ipvlan, udev (root; SUITE=bookworm, IMPL=stock)
	@scripts/packages.sh debootstrap e2fsprogs qemu-system-x86 util-linux
	$(GO) test -tags vm -count=1 -timeout 60m -v ./tests/vm/

bench: ## benchmarks, beside stock where there is one (BENCH=regexp; root)
	@scripts/packages.sh
	@$(MAKE) --no-print-directory build
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...
	$(GO) test -tags integration -count=1 -timeout 60m -run '^$$' -bench '$(BENCH)' -v ./tests/bench/

crash: build nss ## kill the daemons and cut the power at 100 moments of each change of an image and of imports (root)
	MACHINED_TEST_CRASH=100 $(GO) test -tags integration -count=1 -timeout 60m -v -run 'TestKilled|TestPowerCut' ./tests/integration/

mkosi: build nss ## boot images that Debian's mkosi, debootstrap and mmdebstrap make, which takes minutes and the network (root)
	$(GO) test -tags integration,mirror -count=1 -timeout 40m -v -run 'TestMkosi$$|TestCreateDebian$$' ./tests/integration/

soak: build nss ## what tests do briefly, in full: 10,000 rounds of each race, 100,000 registrations, a million look-ups (root)
	RACE_ROUNDS=10000 SOAK_ROUNDS=100000 LOOKUPS=1000000 $(GO) test -tags integration -count=1 -timeout 180m -v -run 'TestHostileRaces|TestSoak|TestLookupStorm' ./tests/integration/

faults: build nss ## have each step of a machine's start fail, and kill the spawner and the daemon there, one by one (root)
	MACHINED_TEST_FAULTS=all $(GO) test -tags integration -count=1 -timeout 120m -v -run 'TestFaults' ./tests/integration/

fuzz: ## every fuzz target for FUZZTIME each
	@scripts/fuzz.sh $(FUZZTIME)

lint: ## gofmt, vet, golangci-lint where it is installed, shellcheck
	@scripts/lint.sh

man: ## check the man pages with mandoc
	@for page in man/*.[1-8]; do grep -q "^\.so " "$$page" || mandoc -T lint -W error "$$page" || exit 1; done

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
