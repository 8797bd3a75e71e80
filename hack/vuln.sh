#!/usr/bin/env bash
# Fails for a known vulnerability in code that ours reaches, Go's own included, of the toolchain that go.mod
# names. The database is a Go module too: no other host is asked, and a commit that was green stays
# green. To ask for what has become known since, raise its version.
set -euo pipefail
cd "$(dirname "$0")/.."

database=golang.org/x/vulndb@v0.0.0-20261105234957-e22db6528018
# From outside of a module, so that it is no dependency of one.
folder=$(cd / && go mod download -json "$database" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
toolchain=$(sed -n 's/^toolchain //p' go.mod)
if ! grep -q "golang:${toolchain#go} " Dockerfile; then
  echo "vuln: the Dockerfile builds with another Go than go.mod's $toolchain; want FROM … golang:${toolchain#go}"
  exit 1
fi
GOTOOLCHAIN=$toolchain bin/govulncheck -db "file://$folder/data/osv" ./...
