// Package uidrange picks the 65536 host UIDs and GIDs that a machine's users map
// to, or several such ranges in a row, holds them for the machine's life, and
// rewrites a tree's ownership where it cannot be mapped.
//
// Ranges and locks are those of systemd-nspawn, so both draw from one pool. It
// makes no user namespace and mounts nothing.
package uidrange

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"

	"machined/internal/pathlock"
)

const (
	// Size is how many UIDs a range has.
	Size = 0x10000
	// Min and Max bound the first UID of a range (UIDS-GIDS of systemd).
	Min = 0x00080000
	Max = 0x6FFF0000
	// ForeignBase is the first UID of the range that trees at rest may use.
	ForeignBase = 2147352576
	// Dir is where ranges in use are locked.
	Dir = "/run/systemd/nspawn-uid"

	attempts = 100
)

// ErrExhausted says that no free range was found.
var ErrExhausted = errors.New("no free UID range")

// Range is Count UIDs and GIDs held, from Base on. Close gives them back.
type Range struct {
	Base, Count uint32
	locks       []*pathlock.Lock
}

// Files are the open lock files by which the range is held (package pathlock). They
// stay owned by the range.
func (r *Range) Files() []*os.File {
	var out []*os.File
	for _, l := range r.locks {
		out = append(out, l.Files()...)
	}
	return out
}

// Close gives the range back. Closing twice is harmless.
func (r *Range) Close() {
	if r == nil {
		return
	}
	for _, l := range r.locks {
		l.Close()
	}
}

// Picker picks ranges. Default has the host's paths; tests use others.
type Picker struct {
	Dir           string // lock files
	Etc           string // passwd, group, nsswitch.conf, .pwd.lock
	Random        func() uint32
	LookupForeign func(database string, ids []uint32) bool
	// Mapped are the IDs that this process can give away, nil for all.
	Mapped func() Extent
}

// Default draws from the pool of this host.
var Default = Picker{Dir: Dir, Etc: "/etc", Random: random, LookupForeign: getent, Mapped: ownMap}

// Pick takes the range that the root directory's owner lies in, if it is free;
// else the one that the machine's name hashes to, else a random one. It returns
// ErrExhausted after 100 tries.
//
// More than one range are wanted for a machine that shall have machines of its
// own (see Nested). In such a machine there are few, of which half are given to
// one that wants several.
func Pick(rootOwnerUID uint32, machine string, ranges uint32) (*Range, error) {
	return Default.Pick(rootOwnerUID, machine, ranges)
}

// Pick is the function Pick, with p's paths.
func (p Picker) Pick(rootOwnerUID uint32, machine string, ranges uint32) (*Range, error) {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, err
	}
	// Nobody shall add a user while we look.
	unlock, err := lockPasswd(filepath.Join(p.Etc, ".pwd.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	pool, tries := p.pool(), uint32(attempts)
	if pool.few() {
		tries, ranges = pool.ranges(), min(ranges, max(pool.ranges()/2, 1))
	}
	candidate := rootOwnerUID
	if tries == 0 {
		return nil, fmt.Errorf("%w: this user namespace has no UIDs to spare (--nesting of the machine around gives some)", ErrExhausted)
	}
	hashed := machine == ""
	for n := range tries + 1 {
		if pool.has(candidate, ranges) {
			if r, err := p.try(candidate, ranges); err != nil || r != nil {
				return r, err
			}
		}
		switch {
		case pool.few(): // one after another, so that none is missed
			candidate = pool.nth(Hash(machine) + n)
		case hashed:
			candidate = pool.nth(p.Random())
		default:
			candidate, hashed = pool.nth(Hash(machine)), true
		}
	}
	return nil, ErrExhausted
}

// try returns nil, nil when the ranges are not to be had.
func (p Picker) try(base, ranges uint32) (_ *Range, err error) {
	r := &Range{Base: base, Count: ranges * Size}
	defer func() {
		if err != nil || r.Base == 0 {
			r.Close()
		}
	}()
	var ids []uint32
	for n := range ranges {
		first := base + n*Size
		lock, err := pathlock.File(filepath.Join(p.Dir, strconv.FormatUint(uint64(first), 10)), false)
		if errors.Is(err, pathlock.ErrBusy) {
			r.Base = 0
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		r.locks = append(r.locks, lock)
		ids = append(ids, first, first+0xFFFE)
	}
	for _, db := range []string{"passwd", "group"} {
		if p.known(db, ids) {
			r.Base = 0
			return nil, nil
		}
	}
	return r, nil
}

// Hash returns the number that a machine's name stands for, before it is
// narrowed to a range.
func Hash(machine string) uint32 {
	key := [16]byte{0xe1, 0x56, 0xe0, 0xf0, 0x4a, 0xf0, 0x41, 0xaf, 0x96, 0x41, 0xcf, 0x41, 0x33, 0x94, 0xff, 0x72}
	return uint32(siphash.Hash(binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:]), []byte(machine)))
}

func random() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint32(b[:])
}

// known tells whether the user or group database has one of the ids.
func (p Picker) known(db string, ids []uint32) bool {
	if b, err := os.ReadFile(filepath.Join(p.Etc, db)); err == nil {
		for line := range bytes.Lines(b) {
			f := strings.SplitN(string(line), ":", 4)
			if len(f) < 4 {
				continue
			}
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && slices.Contains(ids, uint32(n)) {
				return true
			}
		}
	}
	return p.foreignSources(db) && p.LookupForeign != nil && p.LookupForeign(db, ids)
}

// foreignSources tells whether nsswitch.conf(5) names a source that can know
// users in these ranges and that is not covered by files and locks.
func (p Picker) foreignSources(db string) bool {
	b, err := os.ReadFile(filepath.Join(p.Etc, "nsswitch.conf"))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		text, _, _ := strings.Cut(string(line), "#")
		name, sources, ok := strings.Cut(text, ":")
		if !ok || strings.TrimSpace(name) != db {
			continue
		}
		for _, s := range strings.Fields(sources) {
			switch s {
			case "files", "compat", "mymachines", "altfiles":
			case "systemd":
				if p.userdb() {
					return true
				}
			default:
				if s[0] != '[' {
					return true
				}
			}
		}
	}
	return false
}

// userdb tells whether nss-systemd has more to say than the fixed users: records
// or services beside machined's and the manager's.
func (p Picker) userdb() bool {
	for _, d := range []string{"/etc/userdb", "/run/userdb", "/usr/lib/userdb"} {
		if e, err := os.ReadDir(d); err == nil && len(e) > 0 {
			return true
		}
	}
	e, _ := os.ReadDir("/run/systemd/userdb")
	for _, s := range e {
		switch s.Name() {
		case "io.systemd.DynamicUser", "io.systemd.Machine", "io.systemd.Multiplexer", "io.systemd.NameServiceSwitch", "io.systemd.DropIn":
		default:
			return true
		}
	}
	return false
}

// getent asks the C library's sources, which a static program cannot load.
func getent(db string, ids []uint32) bool {
	args := []string{db}
	for _, id := range ids {
		args = append(args, strconv.FormatUint(uint64(id), 10))
	}
	out, _ := exec.Command("getent", args...).Output() // status 2: some not found
	return len(bytes.TrimSpace(out)) > 0
}

// lockPasswd takes lckpwdf(3)'s lock. A system without a writable /etc has no
// users added either.
func lockPasswd(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			f.Close()
			return nil, os.NewSyscallError("fcntl", err)
		}
		return func() { f.Close() }, nil
	}
}
