#!/usr/bin/env bash
# The tour of `make demo`: boots a Debian system as a machine and shows daily work with it.
# Without systemd as PID 1 it runs machined from bin/ with its private bus and leaves nothing
# installed; under systemd it uses the system bus and the installed programs (and installs them
# for the length of the tour if they are not there). Needs root. DEMO_CACHE holds the Debian tree.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${DEMO_CACHE:-/var/cache/machined-demo}
suite=bookworm
packages=systemd,systemd-sysv,dbus,libpam-systemd,iproute2,procps
machine=demo
pool=/var/lib/machines
tree=$pool/$machine
log=$(mktemp /tmp/machined-demo.XXXXXX)
daemon=
installed=
made_tree=
step="starting"

bold='' dim='' off=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; fi

say() { printf '%s\n' "${dim}── $*${off}"; }
fail() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}
# show CMD...: echoes a command as one would type it, then runs it.
show() {
	step=$*
	printf '\n%s\n' "${bold}# $*${off}"
	"$@"
}

cleanup() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" -eq 0 ] || {
		printf 'demo: failed at: %s (exit status %s)\n' "$step" "$status" >&2
		[ ! -s "$log" ] || { echo "demo: last lines of machined's log:" >&2; tail -n 20 "$log" >&2; }
	}
	if [ -n "$made_tree" ]; then
		if machinectl show "$machine" >/dev/null 2>&1; then
			machinectl terminate "$machine" >/dev/null 2>&1 || true
			for _ in $(seq 100); do
				machinectl show "$machine" >/dev/null 2>&1 || break
				sleep 0.1
			done
		fi
	fi
	if [ -n "$daemon" ]; then
		kill -TERM "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	[ -z "$installed" ] || make -s -C "$top" uninstall >/dev/null || true
	[ -z "$made_tree" ] || rm -rf --one-file-system "$tree"
	rm -f "$log"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" -eq 0 ] || fail "needs root: machines are namespaces, mounts and cgroups; run: sudo make demo"
[ -n "$(findmnt -n -t cgroup2 -o TARGET | head -n 1)" ] || fail "no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup"

# 1. What the tour needs.
step="install what is missing"
missing=()
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v dbus-daemon >/dev/null || missing+=(dbus-daemon)
if [ ${#missing[@]} -gt 0 ]; then
	command -v apt-get >/dev/null || fail "please install: ${missing[*]}"
	say "installing ${missing[*]} with apt-get"
	apt-get -qq update >/dev/null
	DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends install "${missing[@]}" >/dev/null
fi
command -v go >/dev/null || [ -x "$top/bin/machined" ] || fail "needs Go to build: https://go.dev/doc/install"

# 2. The programs.
step="make build"
say "building"
make -s -C "$top" build
PATH=$top/bin:$PATH

# 3. A Debian tree, once.
step="debootstrap $suite"
base=$cache/$suite-$(printf '%s' "$packages" | cksum | cut -d' ' -f1)
if [ ! -e "$base/.complete" ]; then
	say "fetching a Debian $suite tree into $base (about 90 seconds, once)"
	mkdir -p "$cache"
	rm -rf --one-file-system "$base"
	debootstrap --variant=minbase --include="$packages" "$suite" "$base" >"$log" 2>&1 || {
		tail -n 5 "$log" >&2
		fail "debootstrap $suite failed"
	}
	# The machine's own identity is made at its first boot.
	: >"$base/etc/machine-id"
	rm -f "$base/etc/hostname"
	rm -rf "$base"/var/cache/apt/archives/*.deb
	: >"$log"
	touch "$base/.complete"
fi
[ ! -e "$tree" ] || fail "$tree exists already: this tour would overwrite the image \"$machine\"; remove it with: machinectl remove $machine"
[ -d "$pool" ] || install -d -m 0700 "$pool"
made_tree=1
cp -a --reflink=auto "$base" "$tree"
rm -f "$tree/.complete"

# 4. The daemon.
step="start machined"
if [ "$(cat /proc/1/comm)" = systemd ]; then
	if ! systemctl cat systemd-nspawn@.service 2>/dev/null | grep -q 'machined project'; then
		say "systemd is PID 1: installing for the length of the tour (stock's files are diverted, and come back)"
		installed=1
		make -s -C "$top" install >/dev/null
	fi
	say "systemd is PID 1: machined is started by the system bus"
else
	say "systemd is not PID 1: machined manages cgroups itself and brings a private bus"
	machined >"$log" 2>&1 &
	daemon=$!
	for _ in $(seq 200); do
		machinectl list >/dev/null 2>&1 && break
		kill -0 "$daemon" 2>/dev/null || fail "machined ended while starting"
		sleep 0.1
	done
	machinectl list >/dev/null || fail "machined did not come up within 20 s"
fi

# 5. The tour.
show machinectl list-images
show machinectl start "$machine"
# start returns when the machine's init runs; a shell needs the machine's own bus.
step="wait for the bus of $machine"
for _ in $(seq 300); do
	machinectl -q shell "$machine" /bin/true >/dev/null 2>&1 </dev/null && break
	sleep 0.1
done
show machinectl list
show machinectl --no-pager status "$machine"
show machinectl -q shell "$machine" /bin/systemctl is-system-running --wait
show machinectl -q shell "$machine" /usr/bin/hostnamectl
say "a file written from outside, read inside"
step="write a file into the machine"
greeting="hello from the host, $(date -u +%FT%TZ)"
printf '\n%s\n' "${bold}# echo '$greeting' > $tree/root/greeting${off}"
echo "$greeting" >"$tree/root/greeting"
out=$(machinectl -q shell "$machine" /bin/cat /root/greeting | tr -d '\r')
printf '\n%s\n%s\n' "${bold}# machinectl shell $machine /bin/cat /root/greeting${off}" "$out"
[ "$out" = "$greeting" ] || fail "the machine read \"$out\""
show machinectl poweroff "$machine"
step="wait for $machine to end"
for _ in $(seq 300); do
	machinectl show "$machine" >/dev/null 2>&1 || break
	sleep 0.1
done
! machinectl show "$machine" >/dev/null 2>&1 || fail "$machine is still there 30 s after poweroff"
show machinectl list
printf '\n'
say "done: everything that the tour made is gone again (the Debian tree stays in $cache)"
