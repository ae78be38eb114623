package loopdev

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestAttach(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "file")
	data := make([]byte, 16384)
	copy(data[4096:], "here")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{true, false} {
		mode := os.O_RDWR
		if readOnly {
			mode = os.O_RDONLY
		}
		f, err := os.OpenFile(path, mode, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Attach(f, 4096, 8192, readOnly)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(d.File)
		if err != nil || len(got) != 8192 || string(got[:4]) != "here" {
			t.Errorf("read-only %v: got %d bytes %.4q, %v", readOnly, len(got), got, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Attach(os.Stdin, -1, 0, true); err == nil {
		t.Error("negative offset accepted")
	}
}
