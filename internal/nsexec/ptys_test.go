package nsexec

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPTYs(t *testing.T) {
	t.Parallel()
	const max = 3
	terminals := NewPTYs(max)
	open := func(uid uint32) (*PTY, error) {
		return terminals.Open(t.Context(), uid, func(context.Context) (*PTY, error) { return OpenHostPTY() })
	}
	var mine []*PTY
	for range max {
		pty, err := open(1000)
		if err != nil {
			t.Fatal(err)
		}
		mine = append(mine, pty)
	}
	if _, err := open(1000); !errors.Is(err, ErrTooManyPTYs) || !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("one too many: got %v", err)
	}
	for _, uid := range []uint32{1001, 0, 0, 0, 0} {
		pty, err := open(uid)
		if err != nil {
			t.Fatalf("of user %d: %v", uid, err)
		}
		pty.Close()
	}
	// Whoever got it has a descriptor of it, too.
	fd, err := unix.Dup(int(mine[0].Master.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	mine[0].Close()
	// Nobody has opened the other end yet, so it has not hung up.
	fds := []unix.PollFd{{Fd: int32(fd)}}
	if _, err := unix.Poll(fds, 0); err != nil || fds[0].Revents&unix.POLLHUP != 0 {
		t.Errorf("terminal has hung up: %v, %#x", err, fds[0].Revents)
	}
	if _, err := open(1000); !errors.Is(err, ErrTooManyPTYs) {
		t.Errorf("after one of two descriptors was closed: got %v", err)
	}
	_ = unix.Close(fd)
	for start := time.Now(); ; <-time.After(time.Millisecond) {
		pty, err := open(1000)
		if err == nil {
			pty.Close()
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("after one was closed: %v", err)
		}
	}
	for _, pty := range mine[1:] {
		pty.Close()
	}
	if _, err := terminals.Open(t.Context(), 1002, func(context.Context) (*PTY, error) { return nil, os.ErrNotExist }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	terminals.mu.Lock()
	defer terminals.mu.Unlock()
	if terminals.open[1002] != 0 {
		t.Error("one that was not opened is counted")
	}
}
