// Package fdstore keeps descriptors with the service manager, which gives them
// to the next run of the service (FDSTORE= of sd_notify(3)). It does not know
// what the descriptors are.
package fdstore

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds how long a service manager that does not read costs us.
const sendTimeout = 5 * time.Second

// prefix sets the names of kept descriptors apart from those of sockets.
const prefix = "keep-"

// Store is the service manager's side. Safe for concurrent use.
type Store struct {
	address string // "": nobody keeps anything

	mu   sync.Mutex
	kept map[string][]*os.File // of the run before, not taken yet
}

// New makes a store of what the service manager listens to on notifySocket
// ($NOTIFY_SOCKET; "" for a store that keeps nothing) and of what it has handed
// to this run. It takes over the files that an earlier run kept and returns the
// others.
func New(notifySocket string, files []*os.File) (*Store, []*os.File) {
	s := &Store{address: notifySocket, kept: map[string][]*os.File{}}
	var others []*os.File
	for _, f := range files {
		if name, ok := strings.CutPrefix(f.Name(), prefix); ok {
			s.kept[name] = append(s.kept[name], f)
		} else {
			others = append(others, f)
		}
	}
	return s, others
}

// Take returns what an earlier run kept under name; the caller closes it. It
// stays with the service manager until it is dropped.
func (s *Store) Take(name string) []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.kept[name]
	delete(s.kept, name)
	return files
}

// DropRest drops what an earlier run kept and nobody has taken.
func (s *Store) DropRest() error {
	s.mu.Lock()
	rest := s.kept
	s.kept = map[string][]*os.File{}
	s.mu.Unlock()
	var errs []error
	for name, files := range rest {
		for _, f := range files {
			_ = f.Close()
		}
		errs = append(errs, s.Drop(name))
	}
	return errors.Join(errs...)
}

// Keep stores copies of descriptors under name, beside those that are there.
func (s *Store) Keep(name string, fds ...int) error {
	if len(fds) == 0 {
		return nil
	}
	return s.send("FDSTORE=1\nFDNAME="+prefix+name, unix.UnixRights(fds...))
}

// Drop forgets all that is stored under name.
func (s *Store) Drop(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME="+prefix+name, nil)
}

func (s *Store) send(state string, rights []byte) error {
	if s.address == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", os.NewSyscallError("socket", err))
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(int64(sendTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return fmt.Errorf("tell the service manager: %w", os.NewSyscallError("setsockopt", err))
	}
	// An address that begins with @ is an abstract one, here as there.
	if err := unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.address}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell the service manager: %w", os.NewSyscallError("sendmsg", err))
	}
	return nil
}
