package nss

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/varlink"
)

// ErrNotFound is what a Backend says to an unknown name, address or id.
var ErrNotFound = errors.New("no such entry")

// Entry is a user or a group.
type Entry struct {
	Name    string
	Comment string
	ID      uint32 // UID or GID
	GID     uint32 // primary group, of users only
}

// Backend answers the questions. It is asked from many goroutines. An error
// that is not ErrNotFound becomes "unavailable", one of ctx "try again".
type Backend interface {
	// Addresses returns the machine's name as it is written in the table, and
	// its addresses in the order of preference. Machines of users other than root
	// and the caller have no name: nobody else shall believe what they are called.
	Addresses(ctx context.Context, caller uint32, name string) (canonical string, addrs []Address, err error)
	// ReverseLookup returns the name of the machine that has the address, of
	// those that Addresses knows.
	ReverseLookup(ctx context.Context, caller uint32, ip netip.Addr) (name string, err error)
	UserByName(ctx context.Context, name string) (Entry, error)
	UserByID(ctx context.Context, uid uint32) (Entry, error)
	GroupByName(ctx context.Context, name string) (Entry, error)
	GroupByID(ctx context.Context, gid uint32) (Entry, error)
}

// The limits on callers. A question is one record that the module sends right
// after it has connected, so whoever takes longer is no NSS module.
const (
	questionTimeout = time.Second
	answerTimeout   = 1800 * time.Millisecond // the module waits for 2 s
	maxCallers      = 1024
	maxPerUID       = 256
)

// Listen binds the socket for Serve at path, usually SocketPath.
func Listen(path string) (*net.UnixListener, error) {
	return varlink.ListenType(path, SocketMode, unix.SOCK_SEQPACKET)
}

// Serve answers questions until ctx ends; then it closes the listener and
// waits for the answers that are under way.
func Serve(ctx context.Context, listener *net.UnixListener, backend Backend, log logrus.FieldLogger) error {
	s := server{backend: backend, log: log, perUID: map[uint32]int{}, slots: make(chan struct{}, maxCallers)}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	defer s.callers.Wait()
	defer cancel()
	for {
		// Callers beyond the limit wait in the backlog.
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.AcceptUnix()
		if err != nil {
			<-s.slots
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOMEM) &&
				!errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNABORTED) {
				return fmt.Errorf("accept NSS caller: %w", err)
			}
			// Nothing to wait on but the end of other callers.
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		s.callers.Go(func() {
			defer func() { <-s.slots }()
			defer conn.Close()
			s.serve(ctx, conn)
		})
	}
}

type server struct {
	backend Backend
	log     logrus.FieldLogger
	slots   chan struct{}
	callers sync.WaitGroup

	mu     sync.Mutex
	perUID map[uint32]int
}

func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	uid, err := peerUID(conn)
	if err != nil || !s.enter(uid) {
		return
	}
	defer s.leave(uid)
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_ = conn.SetReadDeadline(time.Now().Add(questionTimeout))
	var buf [maxRequest + 1]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return
	}
	req, err := parseRequest(buf[:n])
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(questionTimeout))
	_, _ = conn.Write(s.answer(ctx, uid, req))
}

func (s *server) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perUID[uid] >= maxPerUID && uid != 0 {
		return false
	}
	s.perUID[uid]++
	return true
}

func (s *server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perUID[uid]--; s.perUID[uid] == 0 {
		delete(s.perUID, uid)
	}
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if serr != nil {
		return 0, os.NewSyscallError("getsockopt", serr)
	}
	return cred.Uid, nil
}

func (s *server) answer(ctx context.Context, uid uint32, req request) []byte {
	out, err := s.ask(ctx, uid, req)
	switch {
	case err == nil:
		return out
	case errors.Is(err, ErrNotFound):
		return encodeStatus(notFound)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return encodeStatus(tryAgain)
	}
	s.log.WithError(err).Debug("cannot answer NSS question")
	return encodeStatus(unavailable)
}

func (s *server) ask(ctx context.Context, uid uint32, req request) ([]byte, error) {
	var e Entry
	var err error
	switch req.op {
	case hostByName:
		name, addrs, err := s.backend.Addresses(ctx, uid, req.name)
		if err != nil {
			return nil, err
		}
		return encodeHost(name, filterFamily(addrs, req.family)), nil
	case hostByAddress:
		name, err := s.backend.ReverseLookup(ctx, uid, req.addr)
		if err != nil {
			return nil, err
		}
		return encodeHost(name, []Address{{IP: req.addr}}), nil
	case userByName:
		e, err = s.backend.UserByName(ctx, req.name)
	case userByID:
		e, err = s.backend.UserByID(ctx, req.id)
	case groupByName:
		e, err = s.backend.GroupByName(ctx, req.name)
	default:
		e, err = s.backend.GroupByID(ctx, req.id)
	}
	if err != nil {
		return nil, err
	}
	return encodeEntry(e.Name, e.Comment, e.ID, e.GID), nil
}
