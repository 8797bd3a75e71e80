#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each: hack/fuzz.sh [TIME or COUNTx, default 5000x]. A count, since at the end
# of a time go test may take its own deadline for a failure (go.dev/issue/75804).
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rlE --include='*_test.go' '^func Fuzz[A-Z]' . | sort | while read -r file; do
  package=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -d' ' -f2 | while read -r target; do
    echo "fuzz: $package $target"
    go test "$package" -run '^$' -fuzz "^$target\$" -fuzztime "${1:-5000x}" </dev/null
  done
done
