package cgroup

import (
	"errors"
	"testing"
)

func TestLockState(t *testing.T) {
	dir := t.TempDir()
	first, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("second lock: got %v, want %v", err, ErrRunning)
	}
	_ = first.Close()
	again, err := lockState(dir)
	if err != nil {
		t.Fatalf("lock after the first has gone: %v", err)
	}
	_ = again.Close()
}
