#!/usr/bin/env bash
# Runs the end-to-end tests: builds the images, brings up a cluster on this machine, and takes it
# down again. With KUBECONFIG it uses that cluster instead; then REGISTRY is where the images are pushed, unless
# the cluster is kind's, and HOST an address of this machine that its pods reach. RUN chooses tests, as go test -run does.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
out=$root/bin/e2e
programs=$root/bin/cluster
mkdir -p "$out"

say() { printf 'e2e: %s\n' "$*"; }

prefix=${REGISTRY:-docker.io/library}
version=$(git describe --tags --always --dirty 2>/dev/null || echo dev)
# The same programs by two names: an upgrade that changes nothing else.
image=$prefix/dedup-operator:$version next=$prefix/dedup-operator:$version-next app=$prefix/dedup-e2e-app:$version

say "building the images"
make -s build cluster-programs
CGO_ENABLED=0 go -C hack/e2e build -trimpath -ldflags "-s -w" -o "$out/app" ./app
images() { # -o or -push
  "$programs/image" -name "$image" "$1" ${2:+"$2/image.tar"} /manager=bin/manager /dedupd=bin/dedupd
  "$programs/image" -name "$next" "$1" ${2:+"$2/next.tar"} /manager=bin/manager /dedupd=bin/dedupd
  "$programs/image" -name "$app" "$1" ${2:+"$2/app.tar"} /app="$out/app"
}

if [ -z "${KUBECONFIG:-}" ]; then
  "$programs/cluster" check
fi
assets=$(hack/setup.sh)
if [ -z "${KUBECONFIG:-}" ]; then
  node=$(hack/setup.sh node)
  export KUBEBUILDER_ASSETS=$assets CLUSTER_NODE=$node
  trap '"$programs/cluster" down' EXIT
  images -o "$out"
  "$programs/cluster" up
  "$programs/cluster" load "$out/image.tar" "$out/next.tar" "$out/app.tar"
  KUBECONFIG=$("$programs/cluster" value kubeconfig)
  HOST=$("$programs/cluster" value host)
else
  context=$("$assets/kubectl" --kubeconfig "$KUBECONFIG" config current-context)
  if [ -n "${REGISTRY:-}" ]; then
    images -push
  elif [[ $context == kind-* ]]; then
    images -o "$out"
    for tar in image next app; do kind load image-archive --name "${context#kind-}" "$out/$tar.tar"; done
  else
    say "the cluster $context is not kind's: set REGISTRY to where its nodes pull images from, and I push them there"
    exit 2
  fi
  if [ -z "${HOST:-}" ]; then
    say "set HOST to an address of this machine that the cluster's pods reach: Redis and RabbitMQ listen there"
    exit 2
  fi
fi
hack/setup.sh queue

make -s build-installer IMG="$image"
cp dist/install.yaml "$out/install.yaml"
export E2E_KUBECONFIG=$KUBECONFIG E2E_KUBECTL=$assets/kubectl E2E_HOST=$HOST E2E_MANIFEST=$out/install.yaml \
  E2E_IMAGE=$image E2E_NEXT_IMAGE=$next E2E_APP_IMAGE=$app
say "running the tests"
go -C hack/e2e test -count=1 -v -timeout 40m ${RUN:+-run "$RUN"} .
