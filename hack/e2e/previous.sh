#!/usr/bin/env bash
# Keeps the sources of a version for the upgrade test, which begins with its manifests and its programs:
#
#   hack/e2e/previous.sh v0.1.0
#
# writes hack/e2e/testdata/previous.tar.gz, to be committed when that version has been released. It
# is a file because a clone need not have history, tags or a network, and the test is to begin with the
# same version everywhere. Until there is a release it is 778e3c0, the last state before this one that anybody could have
# installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
ref=${1:?which version?}
git archive --format=tar "$ref" LICENSE go.mod go.sum main.go api config controllers dedupd webhook \
  ':!*_test.go' ':!**/testdata/**' ':!config/helm' ':!config/samples' ':!**/*test/**' |
  gzip -9n >hack/e2e/testdata/previous.tar.gz
