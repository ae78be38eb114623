// Package netaddr tells the addresses inside the network namespace of a
// process. It keeps one route netlink socket (rtnetlink(7)) per process asked
// about, so that a question costs one dump and no new thread; the socket is
// let go when the process ends, since it would keep the namespace alive. It
// changes nothing in any namespace and knows nothing of machines.
package netaddr

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// ErrSharedNamespace says that the process has no network namespace of its own.
var ErrSharedNamespace = errors.New("process is in the host's network namespace")

// Address is one address of an interface in the namespace.
type Address struct {
	IfIndex int // inside the namespace
	IP      netip.Addr
	Scope   uint8 // RT_SCOPE_*
}

// dumpTimeout bounds one dump; the kernel answers at once.
const dumpTimeout = 2 * time.Second

// maxAddresses is how many addresses of a namespace are told, and read: what is
// inside can have millions of them.
const maxAddresses = 4096

// maxSockets bounds how many sockets are kept.
const maxSockets = 1024

// Cache holds the sockets. The zero value is ready; it is safe for concurrent
// use. Close it to give the sockets back.
type Cache struct {
	mu      sync.Mutex
	entries map[key]*entry
	closed  bool
}

type key struct {
	pid  int
	fdid uint64
}

type entry struct {
	mu   sync.Mutex // held during a dump: one at a time per socket
	proc *sys.Process
	ns   uint64 // inode of the network namespace
	fd   int
	seq  uint32
}

// Addresses returns the addresses in the network namespace of the process:
// IPv4 first, then by scope, interface and address, without duplicates. Those
// of loopback and of the scope nowhere, and tentative, deprecated and
// duplicate ones, are left out. fdid is the inode of the process's pidfd, 0 if
// not known. It returns ErrSharedNamespace, or unix.ESRCH when the process is gone.
func (c *Cache) Addresses(pid int, fdid uint64) ([]Address, error) {
	for {
		e, err := c.get(key{pid, fdid})
		if err != nil {
			return nil, fmt.Errorf("list addresses of process %d: %w", pid, err)
		}
		e.mu.Lock()
		if e.fd < 0 { // closed between get and here
			e.mu.Unlock()
			continue
		}
		list, err := e.dump()
		e.mu.Unlock()
		if err == nil && len(list) >= maxAddresses {
			// The rest of the dump is still in the socket.
			c.drop(key{pid, fdid}, e)
		}
		if err != nil {
			c.drop(key{pid, fdid}, e)
			return nil, fmt.Errorf("list addresses of process %d: %w", pid, err)
		}
		return list, nil
	}
}

// Close closes all sockets; the cache then opens none any more.
func (c *Cache) Close() {
	c.mu.Lock()
	entries := c.entries
	c.entries, c.closed = nil, true
	c.mu.Unlock()
	for _, e := range entries {
		e.close()
	}
}

func (c *Cache) get(k key) (*entry, error) {
	c.mu.Lock()
	e := c.entries[k]
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, os.ErrClosed
	}
	if e != nil {
		if ns, err := inodeOfNS(k.pid); err == nil && ns == e.ns && e.proc.Alive() {
			return e, nil
		}
		c.drop(k, e)
	}
	e, err := open(k)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		e.close()
		return nil, os.ErrClosed
	}
	if other := c.entries[k]; other != nil {
		c.mu.Unlock()
		e.close()
		return other, nil
	}
	if c.entries == nil {
		c.entries = map[key]*entry{}
	}
	var evicted *entry
	if len(c.entries) >= maxSockets {
		for old, victim := range c.entries {
			delete(c.entries, old)
			evicted = victim
			break
		}
	}
	c.entries[k] = e
	c.mu.Unlock()
	if evicted != nil {
		evicted.close()
	}
	return e, nil
}

// Forget lets the socket of a process go, for when its machine has ended.
func (c *Cache) Forget(pid int, fdid uint64) {
	c.mu.Lock()
	e := c.entries[key{pid, fdid}]
	c.mu.Unlock()
	if e != nil {
		c.drop(key{pid, fdid}, e)
	}
}

func (c *Cache) drop(k key, e *entry) {
	c.mu.Lock()
	if c.entries[k] == e {
		delete(c.entries, k)
	}
	c.mu.Unlock()
	e.close()
}

func (e *entry) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		_ = unix.Close(e.fd)
		e.fd = -1
	}
	e.proc.Close()
}

func inodeOfNS(pid int) (uint64, error) {
	path := "/proc/self/ns/net"
	if pid > 0 {
		path = "/proc/" + strconv.Itoa(pid) + "/ns/net"
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = unix.ESRCH
		}
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

func open(k key) (*entry, error) {
	proc, err := sys.OpenProcess(k.pid)
	if err != nil {
		return nil, err
	}
	if k.fdid != 0 && proc.FDID() != k.fdid {
		proc.Close()
		return nil, unix.ESRCH
	}
	ns, err := sys.OpenNamespace(proc, "net")
	if err != nil {
		proc.Close()
		return nil, err
	}
	defer ns.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		proc.Close()
		return nil, os.NewSyscallError("fstat", err)
	}
	own, err := inodeOfNS(0)
	if err == nil && own == st.Ino {
		err = ErrSharedNamespace
	}
	if err != nil {
		proc.Close()
		return nil, err
	}
	fd, err := socketIn(int(ns.Fd()))
	if err != nil {
		proc.Close()
		return nil, err
	}
	return &entry{proc: proc, ns: st.Ino, fd: fd}, nil
}

// socketIn opens a route socket in the namespace, on a thread that joins it and
// then ends.
func socketIn(ns int) (fd int, err error) {
	err = sys.OnThread(func() error {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(int64(dumpTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt", err)
	}
	return fd, nil
}

// Host returns the addresses of our own network namespace, by the same rules.
func Host() ([]Address, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	e := entry{fd: fd}
	return e.dump()
}

func order(a, b Address) int {
	return cmp.Or(
		cmp.Compare(a.IP.BitLen(), b.IP.BitLen()),
		cmp.Compare(a.Scope, b.Scope),
		cmp.Compare(a.IfIndex, b.IfIndex),
		a.IP.Compare(b.IP),
	)
}

// dump reads the addresses. When there are maxAddresses of them, more may wait
// in the socket, which is of no use then.
func (e *entry) dump() ([]Address, error) {
	e.seq++
	for range 3 {
		list, again, err := e.dumpOnce()
		if err != nil {
			return nil, err
		}
		if again && len(list) < maxAddresses { // the table changed under the dump
			e.seq++
			continue
		}
		slices.SortFunc(list, order)
		return slices.Compact(list), nil
	}
	return nil, unix.EAGAIN
}
