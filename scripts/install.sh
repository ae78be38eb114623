#!/bin/sh
# scripts/install.sh install|uninstall
#
# Puts what `make build` made under $DESTDIR$PREFIX, under the names that make it take the place of
# stock's programs. Where the target is a Debian host (it has a dpkg database), stock's files are
# diverted to NAME.distrib first (dpkg-divert(1)), so that upgrades of systemd leave ours alone and
# `uninstall` brings stock's back. On the live host the managers are told; machines go on.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$top/bin}
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}
PREFIX=${PREFIX:-/usr}
MULTIARCH=${MULTIARCH:-}

fail() {
	echo "install: $*" >&2
	exit 1
}

dpkg_root=
if [ -e "$DESTDIR/var/lib/dpkg/status" ]; then
	if command -v dpkg-divert >/dev/null; then
		dpkg_root=${DESTDIR:-/}
	else
		echo "install: dpkg-divert is missing: stock's files in $DESTDIR are overwritten" >&2
	fi
fi

# files prints "MODE SOURCE TARGET" a line; TARGET is without DESTDIR. MODE "link" makes a symlink
# with the text SOURCE.
files() {
	lib=$PREFIX/lib/systemd
	echo "755 $bin/machined $lib/systemd-machined"
	echo "755 $bin/machine-importd $lib/systemd-importd"
	for tool in pull import import-fs export; do
		echo "link systemd-importd $lib/systemd-$tool"
	done
	echo "link ../systemd-importd $lib/system-generators/systemd-import-generator"
	echo "755 $bin/machine-spawn $PREFIX/bin/systemd-nspawn"
	echo "link systemd-nspawn $PREFIX/bin/machine-spawn"
	[ ! -e "$bin/machine-wait" ] || echo "755 $bin/machine-wait $PREFIX/lib/machined/machine-wait"
	echo "755 $bin/machinectl $PREFIX/bin/machinectl"
	echo "755 $bin/importctl $PREFIX/bin/importctl"
	if [ -e "$bin/libnss_mymachines.so.2" ]; then
		echo "644 $bin/libnss_mymachines.so.2 $PREFIX/lib/${MULTIARCH:+$MULTIARCH/}libnss_mymachines.so.2"
	fi
	tree "$top/units/systemd" "$lib/system"
	echo "link systemd-machined.service $lib/system/dbus-org.freedesktop.machine1.service"
	echo "link systemd-importd.service $lib/system/dbus-org.freedesktop.import1.service"
	echo "link ../machines.target $lib/system/multi-user.target.wants/machines.target"
	for wanted in systemd-machined.socket systemd-machined-nss.socket systemd-importd.socket; do
		[ ! -e "$top/units/systemd/$wanted" ] ||
			echo "link ../$wanted $lib/system/sockets.target.wants/$wanted"
	done
	[ ! -e "$top/units/systemd/imports.target" ] ||
		echo "link ../imports.target $lib/system/sysinit.target.wants/imports.target"
	for wanted in remote-fs.target machines.target; do
		[ ! -e "$top/units/systemd/var-lib-machines.mount" ] ||
			echo "link ../var-lib-machines.mount $lib/system/$wanted.wants/var-lib-machines.mount"
	done
	[ ! -e "$top/units/systemd/machined-images.service" ] ||
		echo "link ../machined-images.service $lib/system/machines.target.wants/machined-images.service"
	tree "$top/units/user" "$PREFIX/lib/systemd/user"
	for name in machine1:machined import1:importd; do
		unit=systemd-${name#*:}.service
		[ ! -e "$top/units/user/$unit" ] ||
			echo "link $unit $lib/user/dbus-org.freedesktop.${name%:*}.service"
	done
	tree "$top/units/dbus/system.d" "$PREFIX/share/dbus-1/system.d"
	tree "$top/units/dbus/system-services" "$PREFIX/share/dbus-1/system-services"
	tree "$top/units/dbus/services" "$PREFIX/share/dbus-1/services"
	tree "$top/units/polkit" "$PREFIX/share/polkit-1/actions"
	tree "$top/units/tmpfiles" "$PREFIX/lib/tmpfiles.d"
	tree "$top/completions/bash" "$PREFIX/share/bash-completion/completions"
	tree "$top/completions/zsh" "$PREFIX/share/zsh/site-functions"
	for page in "$top"/man/*.[1-8]; do
		[ ! -e "$page" ] || echo "gz $page $PREFIX/share/man/man${page##*.}/$(basename "$page").gz"
	done
	for doc in README.md CHANGELOG.md LICENSE; do
		echo "644 $top/$doc $PREFIX/share/doc/machined/$doc"
	done
}

# tree prints the files of a source folder for a target folder.
tree() {
	[ -d "$1" ] || return 0
	for f in "$1"/*; do
		[ ! -f "$f" ] || echo "644 $f $2/$(basename "$f")"
	done
}

# divertable says whether a path is one that stock's packages may hold.
divertable() {
	case $1 in
	*/machine-spawn | */lib/machined/* | */share/doc/* | *.wants/*) return 1 ;;
	esac
	[ "$PREFIX" = /usr ]
}

# listed prints the path as dpkg lists it: Debian 12 has /lib/…, which is a link to /usr/lib.
listed() {
	short=${1#/usr}
	if grep -qxF -- "$short" "$DESTDIR"/var/lib/dpkg/info/*.list 2>/dev/null; then
		echo "$short"
	else
		echo "$1"
	fi
}

divert() {
	[ -n "$dpkg_root" ] && divertable "$1" || return 0
	p=$(listed "$1")
	[ "$(dpkg-divert --root="$dpkg_root" --listpackage "$p")" = LOCAL ] ||
		dpkg-divert --root="$dpkg_root" --quiet --local --rename --divert "$p.distrib" --add "$p"
}

undivert() {
	[ -n "$dpkg_root" ] && divertable "$1" || return 0
	for p in "$1" "${1#/usr}"; do
		[ "$(dpkg-divert --root="$dpkg_root" --listpackage "$p")" != LOCAL ] ||
			dpkg-divert --root="$dpkg_root" --quiet --local --rename --remove "$p"
	done
}

# stocks says whether a path is a link that a package has put there already, the same as ours:
# it stays the package's.
stocks() {
	case $1 in *.wants/*) ;; *) return 1 ;; esac
	[ -n "$dpkg_root" ] && grep -qxF -- "$(listed "$1")" "$DESTDIR"/var/lib/dpkg/info/*.list 2>/dev/null
}

# put builds the file beside its place and renames it there: a running program keeps its own.
put() {
	mode=$1 src=$2 dst=$3
	! stocks "$dst" || return 0
	mkdir -p "$(dirname "$DESTDIR$dst")"
	divert "$dst"
	new=$DESTDIR$dst.new.$$
	case $mode in
	link) ln -s "$src" "$new" ;;
	gz)
		gzip -9nc "$src" >"$new"
		chmod 644 "$new"
		;;
	*) install -m "$mode" "$src" "$new" ;;
	esac
	mv -fT "$new" "$DESTDIR$dst"
}

live() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

# tell makes the managers of the live host read what has changed.
tell() {
	live || return 0
	systemctl daemon-reload
	systemctl reload dbus.service 2>/dev/null || systemctl reload dbus-broker.service 2>/dev/null || true
	systemctl try-restart systemd-importd.service 2>/dev/null || true
	# A socket can't be started while its service runs without it.
	was=$(systemctl is-active systemd-machined.service || true)
	[ "$was" != active ] || systemctl stop systemd-machined.service
	for socket in systemd-machined.socket systemd-machined-nss.socket systemd-importd.socket; do
		[ ! -e "$PREFIX/lib/systemd/system/$socket" ] || systemctl start "$socket" || true
	done
	[ "$was" != active ] || systemctl start systemd-machined.service
}

case ${1:-} in
install)
	for b in machined machine-importd machine-spawn machinectl importctl; do
		[ -x "$bin/$b" ] || fail "$bin/$b is not built: run make first"
	done
	files | while read -r mode src dst; do put "$mode" "$src" "$dst"; done
	[ -z "$dpkg_root" ] || mkdir -p "$DESTDIR/var/lib/machines"
	tell
	if [ -e "$DESTDIR/etc/nsswitch.conf" ] && ! grep -q '^hosts:.*mymachines' "$DESTDIR/etc/nsswitch.conf"; then
		echo "install: to resolve machine names, add \"mymachines\" before \"dns\" to the hosts: line of $DESTDIR/etc/nsswitch.conf"
	fi
	;;
uninstall)
	! live || systemctl stop systemd-machined.socket systemd-machined-nss.socket 2>/dev/null || true
	files | while read -r _ _ dst; do
		! stocks "$dst" || continue
		rm -f "$DESTDIR$dst"
		undivert "$dst"
	done
	rmdir "$DESTDIR$PREFIX/share/doc/machined" "$DESTDIR$PREFIX/lib/machined" 2>/dev/null || true
	tell
	;;
*) fail "say install or uninstall" ;;
esac
