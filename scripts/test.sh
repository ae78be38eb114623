#!/bin/sh
# scripts/test.sh unit|root|integration...: runs the named kinds of tests and counts them.
# unit: as whoever runs it; what needs root is skipped and says so. root: the same as root, where
# nothing may be skipped for lack of it. integration: booted hosts. Under CI (REQUIRE_ALL=1) a skip
# fails the test that skips. At the end nothing may be left on the machine. RACE=1 adds -race.
set -eu
cd "$(dirname "$0")/.."

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0
race=
if [ -n "${RACE:-}" ]; then
	race=-race
	export CGO_ENABLED=1
fi

# run NAME ARG...: go test with its events kept; failures are shown whole, passes by package.
run() {
	name=$1
	shift
	echo "== $name tests"
	set +e
	go test $race -json "$@" >"$out/$name.json" 2>"$out/$name.err"
	code=$?
	set -e
	go run ./tests/summary <"$out/$name.json" || code=1
	cat "$out/$name.err" >&2
	[ "$code" -eq 0 ] || status=1
}

need_root() {
	[ "$(id -u)" -eq 0 ] || {
		echo "test: needs root; make test-unit runs without" >&2
		exit 1
	}
}

case " $* " in
*" root "* | *" integration "*)
	need_root
	scripts/packages.sh
	;;
esac
scripts/leftovers.sh | sort >"$out/before"
for kind in "$@"; do
	case $kind in
	unit) run unit ./... ;;
	root)
		run root ./...
		;;
	integration)
		make -s build
		run integration -tags integration -count=1 -timeout 60m ./tests/...
		;;
	*)
		echo "test: no tests are called $kind" >&2
		exit 2
		;;
	esac
done
# The kernel takes the processes and networks of a host that has ended apart on its own time.
tries=40
left=
while [ "$tries" -gt 0 ]; do
	scripts/leftovers.sh | sort >"$out/after"
	left=$(diff "$out/before" "$out/after" | grep '^>') || break
	tries=$((tries - 1))
	sleep 0.25
done
if [ -n "$left" ]; then
	echo "test: left behind on this machine:" >&2
	echo "$left" >&2
	status=1
fi
cat "$out"/*.json | go run ./tests/summary -total || status=1
exit "$status"
