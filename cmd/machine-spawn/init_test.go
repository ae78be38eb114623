package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Every start of a machine executes the program two to four times, with all init
// functions of all its packages. What most starts do not need is for sync.OnceValue.
func TestPackagesStartWithLittle(t *testing.T) {
	program := filepath.Join(t.TempDir(), "machine-spawn")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "--version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const most = 32 << 10 // bytes that the init of one package allocates
	seen := false
	for _, m := range regexp.MustCompile(`(?m)^init (\S+) .* (\d+) bytes, \d+ allocs$`).FindAllStringSubmatch(string(out), -1) {
		bytes, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		seen = seen || strings.HasPrefix(m[1], "machined/")
		if bytes > most {
			t.Errorf("init of %s allocates %d bytes, at most %d", m[1], bytes, most)
		}
	}
	if !seen {
		t.Errorf("no init of our packages is in the trace:\n%s", out)
	}
}
