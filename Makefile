# `make help` lists what there is. Tools are pinned in hack/tools/go.mod and built into bin/.
SHELL := /bin/bash -euo pipefail
# envtest's own limits are for machines that do nothing else.
export KUBEBUILDER_CONTROLPLANE_START_TIMEOUT ?= 3m
export KUBEBUILDER_CONTROLPLANE_STOP_TIMEOUT ?= 2m
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMG ?= dedup-operator:$(VERSION)
PLATFORMS ?= linux/amd64,linux/arm64
FUZZTIME ?= 5000x
SOAK ?= 10m
RACE ?= -race

BIN := $(CURDIR)/bin
# grpcnotrace leaves gRPC's debug pages out, and with their templates what the linker must keep for them: 10 MB.
TAGS := grpcnotrace
LDFLAGS := -s -w -X main.version=$(VERSION)

##@ Use

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Watch it work: API server, operator, Redis and dedupd on this machine. KEEP=1 leaves them up.
	@assets=$$(hack/setup.sh) && KUBEBUILDER_ASSETS=$$assets go run ./hack/demo $(if $(KEEP),--keep)

.PHONY: build
build: ## Build bin/manager and bin/dedupd.
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/manager .
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/dedupd ./dedupd

.PHONY: build-installer
build-installer: ## Write dist/install.yaml: everything a cluster needs, with the image IMG.
	@assets=$$(hack/setup.sh) && mkdir -p dist && \
		"$$assets/kubectl" kustomize config/default | sed 's|controller:latest|$(IMG)|g' > dist/install.yaml
	@echo "dist/install.yaml with the image $(IMG)"

.PHONY: image
image: ## Build the image IMG with docker.
	docker build --build-arg VERSION=$(VERSION) -t $(IMG) .

.PHONY: image-push
image-push: ## Build and push the image IMG for PLATFORMS with docker buildx.
	docker buildx build --push --platform $(PLATFORMS) --build-arg VERSION=$(VERSION) -t $(IMG) .

##@ Check

.PHONY: test
test: lint verify vuln test-go test-manifests fuzz ## Set up what the tests need and run everything.

# -count=1: servers and kubectl read files of which go's cache of results knows nothing.
.PHONY: test-go
test-go: ## Run the tests alone: unit, envtest, real Redis, the demo.
	@assets=$$(hack/setup.sh) && servers=$$(hack/servers.sh) && export KUBEBUILDER_ASSETS=$$assets DEDUP_TEST_SERVERS=$$servers && \
		echo "test-go: control plane in $$assets, servers in $$servers" && go test $(RACE) -count=1 -timeout 15m ./...
	@go -C hack/cluster test . ./images

.PHONY: test-manifests
test-manifests: ## Test chart, alerts, dashboard and health script with the libraries that read them.
	@assets=$$(hack/setup.sh) && cd hack/manifests && KUBEBUILDER_ASSETS=$$assets go test -count=1 ./...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME.
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: lint
lint: $(BIN)/golangci-lint ## Run the linters.
	$(BIN)/golangci-lint run --allow-parallel-runners ./...
	cd hack/cluster && $(BIN)/golangci-lint run --config ../../.golangci.yaml --allow-parallel-runners . ./image ./images ./pause
	for module in e2e manifests; do (cd hack/$$module && $(BIN)/golangci-lint run --config ../../.golangci.yaml --allow-parallel-runners ./...); done
	@shell=$$(command -v shellcheck || true); if [ -n "$$shell" ]; then $$shell hack/*.sh hack/e2e/*.sh .ci/run; fi

.PHONY: vuln
vuln: $(BIN)/govulncheck ## Look for known vulnerabilities that are reachable.
	@hack/vuln.sh

.PHONY: verify
verify: ## Check that every generated file is current.
	@hack/verify.sh

.PHONY: bench
bench: ## Run the Go benchmarks, and measure dedupd beside its rivals for docs/benchmarks.md: some 6 minutes.
	go test -run '^$$' -bench . -skip 'Layouts|Memory' -benchmem -benchtime 300ms ./dedupd/...
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/dedupd ./dedupd
	go run ./hack/bench --dedupd $(BIN)/dedupd --docs docs

.PHONY: soak
soak: ## Put full load on dedupd for SOAK and see that its memory does not grow.
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/dedupd ./dedupd
	go run ./hack/bench --dedupd $(BIN)/dedupd --docs docs --soak $(SOAK)

.PHONY: scale
scale: ## Measure the operator with 1,000 policies against an API server. SCALE=--record records the thresholds.
	@assets=$$(hack/setup.sh) && KUBEBUILDER_ASSETS=$$assets go run ./hack/scale $(SCALE)

##@ Real cluster

CLUSTER := $(BIN)/cluster

.PHONY: cluster-programs
cluster-programs:
	@mkdir -p $(CLUSTER) && CGO_ENABLED=0 go -C hack/cluster build -trimpath -ldflags "-s -w" -o $(CLUSTER)/ . ./dns ./pause ./image

.PHONY: cluster-up
cluster-up: cluster-programs ## Start a real single-node Kubernetes on this machine (root, Linux).
	@$(CLUSTER)/cluster check && assets=$$(hack/setup.sh) && node=$$(hack/setup.sh node) && KUBEBUILDER_ASSETS=$$assets CLUSTER_NODE=$$node $(CLUSTER)/cluster up

.PHONY: cluster-down
cluster-down: cluster-programs ## Stop it and remove every trace of it.
	@$(CLUSTER)/cluster down

.PHONY: e2e
e2e: ## Test on a real cluster: this machine's own, or KUBECONFIG=… (see docs/cluster.md). RUN=… chooses tests.
	@KUBECONFIG="$(if $(filter command line,$(origin KUBECONFIG)),$(KUBECONFIG))" hack/e2e/run.sh

##@ Generate

.PHONY: generate
generate: $(BIN)/controller-gen $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## Generate Go code from the API types and the protocol.
	$(BIN)/controller-gen object paths=./api/...
	cd dedupd/proto && PATH=$(BIN):$$PATH $(BIN)/buf generate

# A chart cannot reach out of its folder, so it has copies.
CHARTED := $(addprefix rbac/,role.yaml pod_guard.yaml deduppolicy_edit_role.yaml deduppolicy_view_role.yaml) \
	$(addprefix admission-policy/,connect.yaml guard.yaml) $(addprefix monitoring/,alerts.yaml service_monitors.yaml dashboard.json)

.PHONY: manifests
manifests: $(BIN)/controller-gen $(BIN)/crd-ref-docs ## Generate the CRD, the operator's roles, the chart's copies and the API reference.
	$(BIN)/controller-gen crd:generateEmbeddedObjectMeta=false paths=./api/... output:crd:dir=config/crd/bases
	$(BIN)/controller-gen rbac:roleName=manager-role paths=./controllers/... paths=./webhook/... output:rbac:dir=config/rbac
	$(BIN)/controller-gen rbac:roleName=tenant-role paths=./controllers/... output:rbac:dir=config/namespaced/tenant
	for file in $(CHARTED); do cp config/$$file config/helm/files/; done
	cp config/crd/bases/dedupd.io_deduppolicies.yaml config/helm/files/crd.yaml
	cp config/namespaced/tenant/role.yaml config/helm/files/tenant-role.yaml
	$(BIN)/crd-ref-docs --source-path=./api --config=hack/crd-ref-docs.yaml --renderer=markdown --output-path=docs/api.md

.PHONY: clean
clean: ## Remove what was built here. The control plane in the user's cache folder stays.
	rm -rf $(BIN) dist

# A tool is rebuilt when its pin moves.
tool-controller-gen := sigs.k8s.io/controller-tools/cmd/controller-gen
tool-govulncheck := golang.org/x/vuln/cmd/govulncheck
tool-golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
tool-buf := github.com/bufbuild/buf/cmd/buf
tool-crd-ref-docs := github.com/elastic/crd-ref-docs
tool-protoc-gen-go := google.golang.org/protobuf/cmd/protoc-gen-go
tool-protoc-gen-go-grpc := google.golang.org/grpc/cmd/protoc-gen-go-grpc

$(BIN)/%: hack/tools/go.mod
	@echo "building $*"
	@go -C hack/tools build -o $@ $(tool-$*)
	@touch $@
