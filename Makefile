# ron-kms. `make` alone lists the targets. GNU make 4.3 or later, bash, Go 1.26, gcc.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO        ?= go
BUILD     ?= build
PREFIX    ?= /usr/local
DESTDIR   ?=
FUZZTIME  ?= 10s
ONLY      ?=

# What a build says of itself. Nothing here depends on the time or the machine,
# so that two builds of one commit are the same bytes.
VERSION   ?= $(shell v=$$(git describe --tags --match 'v[0-9]*' 2>/dev/null || echo v0.1.0-dev); echo $${v#v})
COMMIT    ?= $(shell git describe --always --abbrev=12 --dirty --exclude='*' 2>/dev/null || echo unknown)
LDFLAGS    = -s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# runtime/secret erases what cryptographic code leaves on the stack and the
# heap. Toolchains without the experiment build without it. An empty value
# given on the command line (EXPERIMENT=) asks for the plain build.
EXPERIMENT ?= $(shell GOEXPERIMENT=runtimesecret $(GO) list runtime/secret >/dev/null 2>&1 && echo runtimesecret)

SOURCES := go.mod go.sum $(shell find audit backends core cmd capi include -type f \( -name '*.go' -o -name '*.c' -o -name '*.h' -o -name '*.map' -o -name '*.sh' \) ! -name '*_test.go' 2>/dev/null)

.PHONY: help
help: ## list the targets
	@echo "ron-kms $(VERSION). Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r t d; do printf '  %-10s %s\n' "$$t" "$$d"; done

.PHONY: build
build: $(BUILD)/libronkms.so $(BUILD)/ron-kms ## the C library and the ron-kms program, into build/

# Rewritten only when it changes, so that another version or another experiment
# builds anew and the same ones do not.
FLAGS := $(VERSION) $(COMMIT) $(EXPERIMENT)
$(BUILD)/.flags: FORCE
	@mkdir -p $(BUILD); echo '$(FLAGS)' | cmp -s - $@ || echo '$(FLAGS)' > $@
.PHONY: FORCE

$(BUILD)/libronkms.so.0: $(SOURCES) $(BUILD)/.flags
	GOEXPERIMENT=$(EXPERIMENT) VERSION=$(VERSION) COMMIT=$(COMMIT) sh capi/build.sh $(BUILD)

$(BUILD)/libronkms.so: $(BUILD)/libronkms.so.0
	ln -sf libronkms.so.0 $@

$(BUILD)/ron-kms: $(SOURCES) $(BUILD)/.flags
	CGO_ENABLED=0 GOEXPERIMENT=$(EXPERIMENT) $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $@ ./cmd/ron-kms

.PHONY: demo
demo: build ## the main job end to end: C signs, others verify, a kill loses nothing, the log counts the same
	bash tests/demo/run.sh

.PHONY: test
test: ## every test, with the race detector where it can be
	bash tests/scripts/test.sh

.PHONY: check
check: ## what a change must pass besides the tests: format, analysis, licences, hygiene
	bash tests/scripts/check.sh

.PHONY: bench
bench: build ## measure; ONLY=prefix runs those whose name begins so; writes build/bench.json
	mkdir -p $(BUILD)
	GOEXPERIMENT=$(EXPERIMENT) $(GO) run ./tests/bench -only '$(ONLY)'

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	bash tests/scripts/fuzz.sh $(FUZZTIME)

.PHONY: soak
soak: ## the long forms: 1000 kills, every byte of every file, each fuzz target for 2 minutes
	RONKMS_SOAK=1 RONKMS_KILLS=$${RONKMS_KILLS:-1000} $(GO) test -count=1 -timeout 60m ./audit ./backends/... ./core/... ./tests/crash
	bash tests/scripts/fuzz.sh $${FUZZTIME:-2m}

.PHONY: install
install: build ## library, header, pkg-config file, program and licence; PREFIX, DESTDIR
	bash tests/scripts/install.sh install '$(BUILD)' '$(DESTDIR)' '$(PREFIX)' '$(VERSION)'

.PHONY: uninstall
uninstall: ## what install put there
	bash tests/scripts/install.sh uninstall '$(BUILD)' '$(DESTDIR)' '$(PREFIX)' '$(VERSION)'

.PHONY: fmt
fmt: ## gofmt everything
	gofmt -l -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: clean
clean: ## remove build/
	rm -rf $(BUILD)
