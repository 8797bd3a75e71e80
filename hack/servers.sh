#!/usr/bin/env bash
# Brings the servers that the Redis store is tested against besides the redis-server of PATH: Redis
# 8 and Valkey 8, as Debian 13 has them, with the libraries that they need. They run from the
# user's cache folder; the system is left as it is. Prints progress on stderr, and on stdout the
# folder with the programs redis-8 and valkey-8. What is there already is used.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

programs="redis-8 valkey-8"

complete() {
  for program in $programs; do
    [ -x "$1/$program" ] || return 1
  done
}

if [ -n "${DEDUP_TEST_SERVERS:-}" ]; then
  if ! complete "$DEDUP_TEST_SERVERS"; then
    say "servers: DEDUP_TEST_SERVERS=$DEDUP_TEST_SERVERS lacks one of the programs $programs; unset it to have them set up"
    exit 1
  fi
  echo "$DEDUP_TEST_SERVERS"
  exit
fi

suite=trixie
servers=${XDG_CACHE_HOME:-$HOME/.cache}/dedup-operator/servers/$suite
if complete "$servers"; then
  echo "$servers"
  exit
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null || [ ! -r "$keyring" ]; then
  say "servers: the tests run the Redis store on Redis 8 and on Valkey 8 as well, and this system cannot unpack Debian's:"
  say "         apt-get, dpkg or $keyring (package debian-archive-keyring) is missing."
  say "         Install Redis 8 and Valkey 8, make a folder with links to their servers, named redis-8 and valkey-8,"
  say "         and set DEDUP_TEST_SERVERS to it. For example, with Homebrew:"
  say "         mkdir -p ~/servers && ln -s \"\$(brew --prefix redis)/bin/redis-server\" ~/servers/redis-8 &&"
  say "         ln -s \"\$(brew --prefix valkey)/bin/valkey-server\" ~/servers/valkey-8 && export DEDUP_TEST_SERVERS=~/servers"
  exit 1
fi

# A second clone that comes meanwhile waits and finds them.
mkdir -p "$(dirname "$servers")"
exec 9>"$servers.lock"
if command -v flock >/dev/null; then
  flock 9
fi
if complete "$servers"; then
  echo "$servers"
  exit
fi

say "servers: unpacking Redis 8 and Valkey 8 of Debian $suite, once, into $servers; about 15 s"
work=$servers.$$
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/lists/partial "$work"/apt/cache/archives/partial "$work"/debs "$work"/root
: >"$work/apt/status"
# A list of sources of our own, at the mirror that the system uses, which apt verifies by Debian's keys like any other.
# shellcheck disable=SC2016 # apt's own notation
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -E '/debian/?$' | sort -u | head -n 1 || true)}
if [ -z "$mirror" ]; then
  say "servers: apt knows no mirror of Debian here; set DEBIAN_MIRROR to the address of one, or DEDUP_TEST_SERVERS to a folder with $programs"
  exit 1
fi
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/apt/sources.list"
apt=(
  -q -o "Dir::Etc::SourceList=$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State=$work/apt" -o "Dir::State::Lists=$work/apt/lists" -o "Dir::State::status=$work/apt/status"
  -o "Dir::Cache=$work/apt/cache" -o Acquire::Languages=none
  -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User="$(id -un)"
)
packages="redis-server redis-tools valkey-server valkey-tools
  libatomic1 libc6 libcap2 libgcc-s1 libjemalloc2 liblzf1 libssl3t64 libstdc++6 libsystemd0 libzstd1 zlib1g"
{
  apt-get "${apt[@]}" update
  # shellcheck disable=SC2086 # a list of words
  (cd "$work/debs" && apt-get "${apt[@]}" download $packages)
} >&2 || {
  say "servers: Debian's mirror does not give them; set DEBIAN_MIRROR to one that does, or DEDUP_TEST_SERVERS to a folder with $programs"
  exit 1
}
for package in "$work"/debs/*.deb; do
  dpkg -x "$package" "$work/root"
done
rm -rf "$work/apt" "$work/debs"

# Each program starts by the loader that it was unpacked with, since the system's libraries may be older.
for program in $programs; do
  cat >"$work/$program" <<END
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")/root
exec "\$(echo "\$root"/usr/lib/*/ld-linux-*.so.*)" --library-path "\$(echo "\$root"/usr/lib/*-linux-gnu)" "\$root/usr/bin/${program%-8}-server" "\$@"
END
  chmod +x "$work/$program"
  "$work/$program" --version >&2
done
rm -rf "$servers"
mv "$work" "$servers"
echo "$servers"
