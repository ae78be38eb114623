package nss

import (
	"os"
	"os/exec"
	"testing"
)

// TestModule drives the C module with right and hostile answers, plain, under
// the sanitizers and under valgrind (make -C nss check).
func TestModule(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"gcc", "valgrind"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("REQUIRE_ALL") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	cmd := exec.Command("sh", "module/check.sh")
	cmd.Env = append(os.Environ(), "ROUNDS=800")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
