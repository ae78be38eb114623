#!/bin/sh
# scripts/fuzz.sh TIME: runs each fuzz target of the tree for TIME (a go duration).
set -eu
cd "$(dirname "$0")/.."
time=${1:-5s}
grep -rlE --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/^func //' | while read -r target; do
		echo "== $(dirname "$file") $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$(dirname "$file")"
	done
done
