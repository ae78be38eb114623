#!/bin/sh
# scripts/lint.sh: what keeps the tree even. golangci-lint and shellcheck run where they are installed.
set -eu
cd "$(dirname "$0")/.."
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || {
	echo "not gofmt-clean:" >&2
	echo "$unformatted" >&2
	exit 1
}
go vet ./...
go vet -tags integration,mirror ./tests/...
go vet -tags vm ./tests/vm
if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "lint: golangci-lint is not installed: skipped"; fi
if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh; else echo "lint: shellcheck is not installed: skipped"; fi
