package sys

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnThread: what changes a thread never changes the main one, however many
// are at it and whatever else runs.
func TestOnThread(t *testing.T) {
	t.Parallel()
	var wait sync.WaitGroup
	for range 64 {
		wait.Go(func() {
			for range 20 {
				before := 0
				err := OnThread(func() error {
					before = unix.Gettid()
					if before == unix.Getpid() {
						t.Error("it is the main thread")
					}
					return unix.ENOTTY
				})
				if err != unix.ENOTTY {
					t.Errorf("got %v, not the error of the function", err)
				}
			}
		})
	}
	wait.Wait()
}
