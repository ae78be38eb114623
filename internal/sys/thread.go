package sys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on a thread that is used for nothing else afterwards, so that
// f may change what threads have of their own: namespaces, IDs, the file system
// context. It is never the main thread. That one cannot end: the run-time would
// park it as f left it, and it is the one whose namespaces and root directory
// /proc/self shows, to us and to everybody else.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// As long as this goroutine waits here, no other can come to run on
			// the main thread.
			err := OnThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the thread ends with this goroutine, and with it all
		// that f changed.
		done <- f()
	}()
	return <-done
}
