package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Compile makes a program of a C source of the test's and puts it into the host.
// flags are further ones for the compiler, libraries among them.
func (h *Host) Compile(t testing.TB, source, to string, flags ...string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if out, err := exec.Command(cc, append([]string{"-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("compile %s: %v\n%s", source, err, out)
	}
	h.CopyIn(t, program, to)
}

// CompileGo makes a program of a Go package of the test's, linked to the C
// library, and puts it into the host.
func (h *Host) CompileGo(t testing.TB, dir, to string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-tags", "netcgo", "-o", program, "./"+dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile %s: %v\n%s", dir, err, out)
	}
	h.CopyIn(t, program, to)
}
