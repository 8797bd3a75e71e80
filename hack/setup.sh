#!/usr/bin/env bash
# Brings what the tests and the demo need besides Go: redis-server, and the control plane
# (kube-apiserver, etcd, kubectl). Prints progress on stderr, and on stdout the folder of the
# control plane's programs. What is there already is used; nothing is fetched or built twice.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '%s\n' "$*" >&2; }

redis() {
  if command -v redis-server >/dev/null; then
    return
  fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "setup: installing redis-server with apt-get"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends redis-server; } >&2
    return
  fi
  say "setup: redis-server (7.0 or newer) is not on PATH. Install it, for example with"
  say "       sudo apt-get install redis-server    or    brew install redis"
  exit 1
}

# The versions stand in one place each: the go.mod of the module that pins them.
version=$(cd controlplane && go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dedup-operator/controlplane

# The control plane, in this order: what KUBEBUILDER_ASSETS names, what was built before, what
# setup-envtest can download, what builds from Go modules.
controlplane() {
  if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    for program in kube-apiserver etcd kubectl; do
      if [ ! -x "$KUBEBUILDER_ASSETS/$program" ]; then
        say "setup: KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no program $program; unset it to have the control plane set up"
        exit 1
      fi
    done
    echo "$KUBEBUILDER_ASSETS"
    return
  fi
  local built=$cache/${version#v}
  if [ ! -x "$built/kube-apiserver" ]; then
    local downloaded
    if downloaded=$(download); then
      echo "$downloaded"
      return
    fi
    build "$built"
  fi
  echo "$built"
}

# Asks setup-envtest. The listing is the probe: it answers within seconds, or there is no download.
download() {
  local envtest=(go -C tools tool setup-envtest --bin-dir "$cache/envtest")
  local minor=${version#v}
  minor=${minor%.*}.x
  "${envtest[@]}" version >/dev/null 2>&1 || return 1
  if ! "${envtest[@]}" use --installed-only --print path "$minor" 2>/dev/null; then
    timeout 10 "${envtest[@]}" list "$minor" >/dev/null 2>&1 || return 1
    say "setup: downloading the control plane $minor with setup-envtest"
    timeout 300 "${envtest[@]}" use --print path "$minor" || return 1
  fi
}

# Builds into a folder of its own and moves it in place at the end, so that an interrupted run
# never leaves half of it. A second clone that comes meanwhile waits and finds it built.
build() {
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    say "setup: another run builds the control plane; waiting for it"
    flock 9
  fi
  if [ -x "$1/kube-apiserver" ]; then
    return
  fi
  local started=$SECONDS tmp=$1.$$
  say "setup: no download reachable; building kube-apiserver, kubectl and etcd $version from Go modules."
  say "setup: once, into $1; about 8 minutes on 2 cores"
  mkdir -p "$tmp"
  local v=${version#v} stamp=k8s.io/component-base/version
  (while sleep 20; do say "setup: still building, $((SECONDS - started)) s"; done) 9>&- &
  local ticker=$!
  trap 'kill "$ticker" 2>/dev/null' EXIT
  (
    cd controlplane
    export CGO_ENABLED=0
    for program in etcd=go.etcd.io/etcd/server/v3 kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver kubectl=k8s.io/kubernetes/cmd/kubectl; do
      go build -trimpath -o "$tmp/${program%%=*}" \
        -ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=${v%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$v")" "${program#*=}" >&2
      say "setup: built ${program%%=*} after $((SECONDS - started)) s"
    done
  )
  kill "$ticker" 2>/dev/null
  trap - EXIT
  rm -rf "$1"
  mv "$tmp" "$1"
}

redis
controlplane
