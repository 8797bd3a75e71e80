#!/usr/bin/env bash
# Regenerates everything in a copy of the tree and says which files differ from what stands here.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy" "$copy.log"' EXIT
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  [ -e "$file" ] && printf '%s\0' "$file"
done | tar --null -T - -cf - | tar -C "$copy" -xf -

make --no-print-directory BIN="$PWD/bin" -C "$copy" generate manifests >"$copy.log" 2>&1 || { cat "$copy.log"; exit 1; }
(cd "$copy" && go mod tidy -diff) || { echo "verify: go.mod or go.sum is not tidy; run go mod tidy"; exit 1; }

stale=0
while IFS= read -r -d '' file; do
  if ! cmp -s "$copy/$file" "$file"; then
    echo "verify: $file is not current"
    diff -u "$file" "$copy/$file" | head -20 || true
    stale=1
  fi
done < <(cd "$copy" && git -C "$OLDPWD" ls-files -z --cached --others --exclude-standard)
if [ "$stale" = 1 ]; then
  echo "verify: run make generate manifests, and commit what changes"
  exit 1
fi
echo "verify: generated files are current"
