#!/usr/bin/env bash
# Brings what the tests and the demo need besides Go: redis-server, PostgreSQL, and the control
# plane (kube-apiserver, etcd, kubectl). Prints progress on stderr, and on stdout the folder of the
# control plane's programs. What is there already is used; nothing is fetched or built twice.
#
# With the argument "node", brings what a node needs besides that (containerd, runc, CNI plugins,
# nftables), and prints the folder of the rest of Kubernetes (controller manager, scheduler, kubelet,
# kube-proxy). With "queue", brings rabbitmq-server.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '%s\n' "$*" >&2; }

# What is missing is installed where that is possible; hack/cluster says what it still lacks.
want() { # program=package...
  local missing=()
  for program in "$@"; do
    command -v "${program%%=*}" >/dev/null || missing+=("${program#*=}")
  done
  if [ ${#missing[@]} -gt 0 ] && can_apt; then
    apt "${missing[@]}"
  fi
}

apt() { # package...
  say "setup: installing $* with apt-get"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } >&2
}

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

redis() {
  if command -v redis-server >/dev/null; then
    return
  fi
  if can_apt; then
    apt redis-server
    return
  fi
  say "setup: redis-server (7.0 or newer) is not on PATH. Install it, for example with"
  say "       sudo apt-get install redis-server    or    brew install redis"
  exit 1
}

# The programs only: the tests start servers of their own, and none is to run beside them.
postgresql() {
  if command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    return
  fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "setup: installing postgresql with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    {
      apt-get update -q &&
        apt-get install -y -q --no-install-recommends postgresql-common &&
        sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf &&
        apt-get install -y -q --no-install-recommends postgresql
    } >&2
    return
  fi
  say "setup: PostgreSQL (14 or newer) is neither on PATH nor in /usr/lib/postgresql. Install it, for example with"
  say "       sudo apt-get install postgresql    or    brew install postgresql"
  exit 1
}

# The versions stand in one place each: the go.mod of the module that pins them.
version=$(cd controlplane && go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)
cmd=k8s.io/kubernetes/cmd
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
    say "setup: no download reachable; about 8 minutes on 2 cores"
    build "kube-apiserver, kubectl and etcd" "$built" etcd=go.etcd.io/etcd/server/v3 kube-apiserver=$cmd/kube-apiserver kubectl=$cmd/kubectl
  fi
  echo "$built"
}

# What a node runs. The tests' control plane doesn't need it, so it has a folder of its own.
node() {
  want containerd=containerd runc=runc /usr/lib/cni/ptp=containernetworking-plugins nft=nftables \
    conntrack=conntrack ip=iproute2 nsenter=util-linux mount=mount
  local built=$cache/${version#v}-node
  if [ ! -x "$built/kubelet" ]; then
    say "setup: about 4 minutes on 2 cores"
    build "the rest of Kubernetes" "$built" kube-controller-manager=$cmd/kube-controller-manager kube-scheduler=$cmd/kube-scheduler \
      kube-proxy=$cmd/kube-proxy kubelet=$cmd/kubelet
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
build() { # what folder program=package...
  local what=$1 folder=$2
  shift 2
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    say "setup: another run builds here; waiting for it"
    flock 9
  fi
  if [ -d "$folder" ]; then
    return
  fi
  local started=$SECONDS tmp=$folder.$$
  say "setup: building $what $version from Go modules, once, into $folder"
  mkdir -p "$tmp"
  local v=${version#v} stamp=k8s.io/component-base/version
  (while sleep 20 && kill -0 $$ 2>/dev/null; do say "setup: still building, $((SECONDS - started)) s"; done) 9>&- &
  local ticker=$!
  trap 'kill "$ticker" 2>/dev/null' EXIT
  (
    cd controlplane
    export CGO_ENABLED=0
    for program in "$@"; do
      go build -trimpath -o "$tmp/${program%%=*}" \
        -ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=${v%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$v")" "${program#*=}" >&2
      say "setup: built ${program%%=*} after $((SECONDS - started)) s"
    done
  )
  kill "$ticker" 2>/dev/null
  trap - EXIT
  mv "$tmp" "$folder"
}

case ${1:-} in
  node) node ;;
  queue) want /usr/lib/rabbitmq/bin/rabbitmq-server=rabbitmq-server ;;
  "") redis && postgresql && controlplane ;;
  *) say "setup: $1: want no argument, node or queue" && exit 2 ;;
esac
