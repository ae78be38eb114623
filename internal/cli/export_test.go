package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestCreateFile: what a transfer did not finish goes, unless it was there before or the
// transfer goes on.
func TestCreateFile(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	failed := errors.New("failed")
	for _, c := range []struct {
		name   string
		before bool
		ctx    context.Context
		err    error
		stays  bool
	}{
		{"done", false, context.Background(), nil, true},
		{"failed", false, context.Background(), failed, false},
		{"failed, and was there", true, context.Background(), failed, true},
		{"detached", false, gone, failed, true},
		{"nobody knows", false, context.Background(), errBusLost, true},
	} {
		path := filepath.Join(t.TempDir(), "out")
		if c.before {
			if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file, drop, err := createFile(path)
		if err != nil {
			t.Fatal(err)
		}
		drop(c.ctx, c.err)
		_ = file.Close()
		st, err := os.Stat(path)
		if (err == nil) != c.stays || err == nil && st.Size() != 0 {
			t.Errorf("%s: %v, want it to stay: %v", c.name, err, c.stays)
		}
	}
}
