#!/usr/bin/env bash
# Runs the end-to-end tests: builds the images, brings up a new cluster on this machine, and takes it
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
previous=$prefix/dedup-operator:previous # see previous.sh

make -s cluster-programs
if [ -z "${KUBECONFIG:-}" ]; then
  "$programs/cluster" check
fi
say "building the images"
make -s build
CGO_ENABLED=0 go -C hack/e2e build -trimpath -ldflags "-s -w" -o "$out/app" ./app
rm -rf "$out/previous" && mkdir "$out/previous"
tar -xzf hack/e2e/testdata/previous.tar.gz -C "$out/previous"
CGO_ENABLED=0 go -C "$out/previous" build -trimpath -ldflags "-s -w" -o "$out/previous-manager" .
CGO_ENABLED=0 go -C "$out/previous" build -trimpath -ldflags "-s -w" -o "$out/previous-dedupd" ./dedupd
images() { # -o or -push
  "$programs/image" -name "$image" "$1" ${2:+"$2/image.tar"} /manager=bin/manager /dedupd=bin/dedupd
  "$programs/image" -name "$next" "$1" ${2:+"$2/next.tar"} /manager=bin/manager /dedupd=bin/dedupd
  "$programs/image" -name "$previous" "$1" ${2:+"$2/previous.tar"} /manager="$out/previous-manager" /dedupd="$out/previous-dedupd"
  "$programs/image" -name "$app" "$1" ${2:+"$2/app.tar"} /app="$out/app"
}

assets=$(hack/setup.sh)
if [ -z "${KUBECONFIG:-}" ]; then
  node=$(hack/setup.sh node)
  export KUBEBUILDER_ASSETS=$assets CLUSTER_NODE=$node
  trap '"$programs/cluster" down' EXIT
  images -o "$out"
  "$programs/cluster" down # what an earlier run left if it was killed
  "$programs/cluster" up
  "$programs/cluster" load "$out"/{image,next,previous,app}.tar
  KUBECONFIG=$("$programs/cluster" value kubeconfig)
  HOST=$("$programs/cluster" value host)
else
  context=$("$assets/kubectl" --kubeconfig "$KUBECONFIG" config current-context)
  if [ -n "${REGISTRY:-}" ]; then
    images -push
  elif [[ $context == kind-* ]]; then
    images -o "$out"
    for tar in image next previous app; do kind load image-archive --name "${context#kind-}" "$out/$tar.tar"; done
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
if [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
  say "there is no /usr/lib/rabbitmq/bin/rabbitmq-server: install the Debian package rabbitmq-server"
  exit 2
fi

make -s build-installer IMG="$image"
cp dist/install.yaml "$out/install.yaml"
"$assets/kubectl" kustomize "$out/previous/config/default" | sed "s|controller:latest|$previous|g" >"$out/install-previous.yaml"
export E2E_KUBECONFIG=$KUBECONFIG E2E_KUBECTL=$assets/kubectl E2E_HOST=$HOST E2E_MANIFEST=$out/install.yaml \
  E2E_IMAGE=$image E2E_NEXT_IMAGE=$next E2E_APP_IMAGE=$app \
  E2E_PREVIOUS_MANIFEST=$out/install-previous.yaml E2E_PREVIOUS_IMAGE=$previous
say "running the tests"
go -C hack/e2e test -count=1 -v -timeout 40m ${RUN:+-run "$RUN"} .
