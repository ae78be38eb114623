package registry

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestNoUnits(t *testing.T) {
	reg := New(Config{StateDir: t.TempDir() + "/machines", Backend: NoUnits{}, User: true})
	t.Cleanup(reg.Close)
	if err := reg.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	heard := &recorder{ch: make(chan string, 8)}
	reg.Notify(heard)
	req, end := request(t, "one")
	if _, err := reg.Create(context.Background(), req); !errors.Is(err, ErrNotSupported) {
		t.Errorf("create: got %v, want %v", err, ErrNotSupported)
	}
	m, err := reg.Register(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if m.Unit != "" {
		t.Errorf("unit: got %q, want none", m.Unit)
	}
	heard.want(t, "+one")
	end()
	heard.want(t, "-one")
	req, _ = request(t, "two")
	if _, err := reg.Register(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	heard.want(t, "+two")
	if err := reg.Terminate(context.Background(), "two"); err != nil {
		t.Error(err)
	}
	select {
	case <-req.Leader.Exited():
	case <-time.After(10 * time.Second):
		t.Error("terminate: the leader is still there")
	}
}
