# `make help` lists the targets. Everything that is made is in bin/ and .cache/.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
# Fuzzing time per target.
FUZZTIME ?= 60s
# Tests to run, and flags for them: make test PACKAGES=./layer TESTFLAGS='-run Seal -count 3'
PACKAGES  ?= ./...
TESTFLAGS ?=

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X imgcrypt/internal/version.Version=$(VERSION)

# The commands that there are, and what is made of them.
COMMANDS := $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/*.go)))))
# The one that takes a C compiler, for it loads the vendors' libraries for tokens. Where there is none it is not made.
CGO_COMMAND := imgcrypt-pkcs11
STATIC_COMMANDS := $(filter-out $(CGO_COMMAND),$(COMMANDS))
BENCHMARKS := . $(foreach d,layer keys,$(if $(wildcard $(d)),./$(d)/...))
CACHE := .cache/bin

.PHONY: help build install setup test lint windows imports demo bench fuzz clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# The version control stamp fails in a tree that git does not trust, and VERSION says the same.
GOBUILD = $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
build: ## the commands in bin/, statically linked except for imgcrypt-pkcs11
	@mkdir -p bin
	$(if $(STATIC_COMMANDS),CGO_ENABLED=0 $(GOBUILD) -o bin/ $(addprefix ./cmd/,$(STATIC_COMMANDS)))
	@cc="$$($(GO) env CC)"; \
	if command -v $${cc%% *} >/dev/null; then \
		echo "CGO_ENABLED=1 $(GO) build … -o bin/ ./cmd/$(CGO_COMMAND)"; \
		CGO_ENABLED=1 $(GOBUILD) -o bin/ ./cmd/$(CGO_COMMAND); \
	else \
		rm -f bin/$(CGO_COMMAND); \
		echo "no C compiler ($$cc), so $(CGO_COMMAND) is not built: keys on tokens cannot be used" >&2; \
	fi

install: build ## the commands in $(DESTDIR)$(PREFIX)/bin
	install -d '$(DESTDIR)$(PREFIX)/bin'
	$(if $(STATIC_COMMANDS),install -m 755 $(addprefix bin/,$(STATIC_COMMANDS)) '$(DESTDIR)$(PREFIX)/bin')
	if [ -e bin/$(CGO_COMMAND) ]; then install -m 755 bin/$(CGO_COMMAND) '$(DESTDIR)$(PREFIX)/bin'; fi

setup: ## what tests and demo need: Debian packages (as root), containerd 2.4, staticcheck
	@scripts/setup

# One package's tests wait for containerds, so two at a time keep two processors busy.
test: setup windows ## all tests with the race detector, and a report
	@mkdir -p $(CACHE)
	@CGO_ENABLED=0 $(GO) build -buildvcs=false -o $(CACHE)/testreport ./internal/cmd/testreport
	CGO_ENABLED=1 $(GO) test -race -json -p 2 -timeout 60m $(TESTFLAGS) $(PACKAGES) | $(CACHE)/testreport

lint: setup windows imports ## gofmt, go vet, staticcheck, module files, import directions
	@echo gofmt -l .
	@files="$$(gofmt -l .)"; if [ -n "$$files" ]; then printf 'not formatted:\n%s\n' "$$files"; exit 1; fi
	$(GO) vet ./...
	$(CACHE)/staticcheck ./...
	$(GO) mod verify
	$(GO) mod tidy -diff
	cd e2e/tools && $(GO) mod verify && $(GO) mod tidy -diff

# containerd starts the decoder on Windows too.
windows: ## the decoder for Windows: vetted and compiled
	$(if $(filter ctd-decoder,$(COMMANDS)),GOOS=windows GOARCH=amd64 CGO_ENABLED=0 $(GO) vet ./cmd/ctd-decoder ./streamproc)
	$(if $(filter ctd-decoder,$(COMMANDS)),GOOS=windows GOARCH=amd64 CGO_ENABLED=0 $(GO) build -buildvcs=false -o /dev/null ./cmd/ctd-decoder)

imports: ## who imports whom
	$(GO) test ./internal/imports

demo: setup ## the walkthrough on a real containerd
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o $(CACHE)/demo ./internal/cmd/demo
	@$(CACHE)/demo

bench: ## benchmarks
	$(GO) test -run '^$$' -bench . -benchmem $(BENCHMARKS)

fuzz: ## each fuzz target for FUZZTIME
	@GO='$(GO)' FUZZTIME='$(FUZZTIME)' scripts/fuzz

clean: ## remove what was made
	rm -rf bin .cache
