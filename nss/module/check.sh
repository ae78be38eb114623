#!/bin/sh
# Builds the module with a socket path and a time-out for tests, and drives it
# plain, under ASan and UBSan, and under valgrind. ROUNDS: fuzzed answers.
set -eu
cd "$(dirname "$0")"
dir=$(mktemp -d "${TMPDIR:-/tmp}/nss-check.XXXXXX")
trap 'rm -rf "$dir"' EXIT INT TERM
rounds=${ROUNDS:-4000}
# The slower a build is, the longer the module waits, also on a machine that is busy.
build() { # build NAME TIMEOUT_MS CFLAGS...
	name=$1 timeout=$2; shift 2
	define="-DMACHINED_NSS_SOCKET=\"$dir/socket\" -DMACHINED_NSS_TIMEOUT_MS=$timeout"
	# shellcheck disable=SC2086
	${CC:-gcc} -std=gnu11 -g $define "$@" -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden \
		-Wl,--version-script=libnss_mymachines.map -o "$dir/$name.so" mymachines.c ask.c
	# shellcheck disable=SC2086
	${CC:-gcc} -std=gnu11 -g $define "$@" -Wall -Wextra -pthread -o "$dir/$name" test/drive.c -ldl
}
build plain 1000 -O2
"$dir/plain" "$dir/plain.so" "$rounds"
build sanitized 2000 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
"$dir/sanitized" "$dir/sanitized.so" "$rounds"
if command -v valgrind >/dev/null; then
	build valgrind 4000 -O1
	valgrind -q --error-exitcode=9 --leak-check=full "$dir/valgrind" "$dir/valgrind.so" $((rounds / 8))
elif [ "${REQUIRE_ALL:-0}" = 1 ]; then
	echo "valgrind is not installed" >&2
	exit 1
else
	echo "skipped: valgrind is not installed"
fi
