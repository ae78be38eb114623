package registry

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Credentials are those of the process that asks.
type Credentials struct {
	UID uint32
	PID int
	// Trusted says that the caller may register any process: it is root, or
	// it has proved to polkit to be an administrator.
	Trusted bool
}

// CreateRequest describes a machine to be registered. Leader and Supervisor
// stay the caller's.
type CreateRequest struct {
	Name           string
	ID             [16]byte
	Service        string
	Class          Class
	Leader         *sys.Process
	Supervisor     *sys.Process // nil: none known
	RootDirectory  string
	NetIfs         []int
	UID            uint32 // owner
	VSockCID       uint32 // 0 or VSockCIDAny: not known
	SSHAddress     string
	SSHPrivateKey  string // path
	ControlAddress string
	Scope          ScopeProperties // Create only
	Sender         Credentials
}

// Bounds of what a caller may have us keep for it.
const (
	maxServiceBytes = 256
	maxAddressBytes = 256
	maxPathBytes    = unix.PathMax
	maxNetIfs       = 256
)

// Check validates a request in the order in which clients expect complaints;
// the last thing it looks at is whether the name is free. It is what a caller
// does before it asks for authorisation; Create and Register do it again. A
// leader that is nil is not known yet.
func (r *Registry) Check(req CreateRequest) error {
	if req.Name == HostName || !ValidName(req.Name) {
		return invalid("Invalid machine name %s: a machine name has 1 to %d characters, labels of letters, digits and '-' joined by single dots", clip(req.Name), MaxNameBytes)
	}
	for _, i := range req.NetIfs {
		if i <= 0 {
			return invalid("Invalid network interface index %d", i)
		}
	}
	if len(req.NetIfs) > maxNetIfs {
		return invalid("Too many network interfaces: %d, at most %d", len(req.NetIfs), maxNetIfs)
	}
	switch req.Class {
	case ClassContainer, ClassVM:
	case "", ClassHost:
		return &detailError{kind: ErrNotSupported, text: fmt.Sprintf("Machine class %s can't be registered", clip(string(req.Class)))}
	default:
		return invalid("Invalid machine class parameter %s", clip(string(req.Class)))
	}
	if req.Leader != nil && req.Leader.PID() == 1 {
		return invalid("Invalid leader PID")
	}
	if req.Leader != nil {
		// A process that has ended meanwhile is found out where it is used.
		if thread, err := sys.IsKernelThread(req.Leader.PID()); err == nil && thread {
			return invalid("Process %d is a kernel thread, which leads no machine", req.Leader.PID())
		}
	}
	if req.RootDirectory != "" && !filepath.IsAbs(req.RootDirectory) {
		return invalid("Root directory must be empty or an absolute path, not %s", clip(req.RootDirectory))
	}
	if err := checkPath("root directory", req.RootDirectory); err != nil {
		return err
	}
	if err := checkPath("SSH private key path", req.SSHPrivateKey); err != nil {
		return err
	}
	if err := checkText("service", req.Service, maxServiceBytes); err != nil {
		return err
	}
	if err := checkText("SSH address", req.SSHAddress, maxAddressBytes); err != nil {
		return err
	}
	if err := checkText("control address", req.ControlAddress, maxPathBytes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nameFree(req.Name)
}

// nameFree needs mu.
func (r *Registry) nameFree(name string) error {
	if _, taken := r.machines[name]; taken {
		return &detailError{kind: ErrMachineExists, text: fmt.Sprintf("Machine '%s' already exists", name)}
	}
	return nil
}

func checkPath(what, path string) error {
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) {
		return invalid("The %s must be an absolute path: %s", what, clip(path))
	}
	return checkText(what, path, maxPathBytes)
}

func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return invalid("The %s is too long: %d bytes, at most %d", what, len(s), limit)
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return invalid("The %s holds a control character: %s", what, clip(s))
	}
	return nil
}

// mayRegister is the ownership check: nobody registers another one's process.
func (r *Registry) mayRegister(req CreateRequest) error {
	if req.Leader == nil {
		return invalid("Invalid leader PID")
	}
	sender := req.Sender
	if r.cfg.User {
		if sender.UID == r.cfg.UID || sender.UID == 0 {
			return nil
		}
	} else if sender.UID == 0 || sender.Trusted || ownsProcess(req.Leader, sender.UID) {
		return nil
	}
	return &detailError{kind: ErrAccess, text: fmt.Sprintf("User %d may not register process %d as leader of a machine: it is not theirs", sender.UID, req.Leader.PID())}
}

// Owns reports whether uid has the rights of a machine's owner: who has registered
// it, while its leader and supervisor are still that user's. A process that has
// executed a set-user-ID program since (execve(2)) is not, and its user could not
// signal it either. Those that have ended are nobody's.
func (r *Registry) Owns(name string, uid uint32) bool {
	r.mu.Lock()
	e, err := r.lookup(name)
	if err != nil || e.m.UID != uid {
		r.mu.Unlock()
		return false
	}
	leader, supervisor := e.leader, e.supervisor
	r.mu.Unlock()
	for _, p := range []*sys.Process{leader, supervisor} {
		if p != nil && p.Alive() && !ownsProcess(p, uid) && p.Alive() {
			return false
		}
	}
	return true
}

// ownsProcess reports whether uid runs p, or owns a user namespace on the chain
// from that of p up to the initial one (ioctl_nsfs(2)).
func ownsProcess(p *sys.Process, uid uint32) bool {
	owner, err := sys.UIDOf(p.PID())
	if err == nil && owner == uid && p.Alive() {
		return true
	}
	ns, err := sys.OpenNamespace(p, "user")
	if err != nil {
		return false
	}
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	_ = ns.Close()
	if err != nil {
		return false
	}
	// The kernel nests user namespaces 32 deep at most (user_namespaces(7)).
	for range 33 {
		owner, err := unix.IoctlGetUint32(fd, unix.NS_GET_OWNER_UID)
		if err == nil && owner == uid {
			_ = unix.Close(fd)
			return true
		}
		parent, perr := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		_ = unix.Close(fd)
		if err != nil || perr != nil {
			return false
		}
		fd = parent
	}
	_ = unix.Close(fd)
	return false
}
