package main

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/image"
	"machined/internal/caps"
	"machined/internal/seccomp"
	"machined/transfer"
)

// memoryLimit is what a worker's own memory stays below, in bytes, as long as it
// does not need more.
const memoryLimit = 96 << 20

// workerCaps are what unpacking needs: owners, modes, device nodes,
// capabilities of files, subvolumes and trusted attributes, immutable marks.
var workerCaps = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN, unix.CAP_LINUX_IMMUTABLE,
}

// sandbox takes from this process what its transfer does not need: writing
// anywhere but where the image goes, reading anything but what it is made of,
// capabilities, and system calls.
func sandbox(req transfer.Request) error {
	debug.SetMemoryLimit(memoryLimit)
	syscall.Umask(0o022)
	if err := allThreads("prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return err
	}
	if err := landlock(req); err != nil {
		return err
	}
	if err := dropCaps(); err != nil {
		return err
	}
	return filterCalls(req.Kind)
}

// filterCalls takes away the system calls that no transfer makes, with those that
// this kind of transfer does not.
func filterCalls(kind transfer.Kind) error {
	deny := []string{
		"@mount", "@setuid", "@resources", "@keyring", "unshare", "setns", "personality", "seccomp", "kcmp", "sethostname", "setdomainname",
		"ipc", "mq_open", "msgget", "semget", "shmget", "shmat", "process_vm_readv", "process_vm_writev", "process_madvise",
	}
	if kind == transfer.PullOCI || kind == transfer.ExportOCI {
		deny = append(deny, "execve", "execveat") // no layer is compressed so that a program would help
	}
	if !kind.Pulls() {
		deny = append(deny, "@network-io")
	}
	filter, err := seccomp.Compile(seccomp.Profile{Deny: deny})
	if err != nil {
		return err
	}
	err = seccomp.LoadAll(filter)
	if errors.Is(err, unix.EPERM) {
		return nil // a filter that is on already forbids further ones
	}
	return err
}

// allThreads makes a system call on each thread of this process: credentials and
// Landlock domains belong to threads.
func allThreads(name string, number, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(number, a1, a2, a3, 0, 0, 0); errno != 0 {
		return os.NewSyscallError(name, errno)
	}
	return nil
}

func dropCaps() error {
	_, _, permitted, err := caps.Get()
	if err != nil {
		return err
	}
	var keep uint64
	for _, n := range workerCaps {
		keep |= caps.Bit(n)
	}
	keep &= permitted
	for n := range caps.Last() + 1 {
		if keep&caps.Bit(n) != 0 {
			continue
		}
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err != nil || has == 0 {
			continue
		}
		err := allThreads("prctl PR_CAPBSET_DROP", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n), 0)
		if err != nil && !errors.Is(err, unix.EPERM) { // without CAP_SETPCAP the set stays
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	return allThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
}

const (
	readRights  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
	writeRights = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	fileRights = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// readable are the places that programs, names and certificates come from.
var readable = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
	"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/alternatives",
	"/etc/systemd", "/run/systemd/resolve", "/dev/urandom",
}

// landlock confines all threads; a kernel without Landlock leaves them as they are.
func landlock(req transfer.Request) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil
	}
	handled := uint64(readRights | writeRights)
	if abi >= 2 {
		handled |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		handled |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: handled}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer func() { _ = unix.Close(int(fd)) }()

	locks := req.LockDir
	if locks == "" {
		locks = "/run/systemd/nspawn/locks"
	}
	_ = os.MkdirAll(locks, 0o700)
	_ = os.MkdirAll(req.ImageRoot, 0o700)
	writable := []string{req.ImageRoot, locks, "/etc/systemd/nspawn", "/run/systemd/nspawn", "/dev/null"}
	allowed := append([]string{}, readable...)
	search := req.SearchPath
	if search == nil {
		search = image.SearchPath(req.Class)
	}
	allowed = append(allowed, search...)
	switch req.Kind {
	case transfer.ExportTar, transfer.ExportRaw, transfer.ExportOCI:
		// The image may be a link to elsewhere; its lock lies beside it.
		for _, dir := range search {
			for _, suffix := range []string{"", ".raw", image.StackSuffix, ".v", ".raw.v", image.StackSuffix + ".v"} {
				if path, err := filepath.EvalSymlinks(filepath.Join(dir, req.Local+suffix)); err == nil {
					writable = append(writable, filepath.Dir(path))
					allowed = append(allowed, layers(req.Kind, path)...)
				}
			}
		}
	case transfer.PullTar, transfer.PullRaw:
		if u, err := url.Parse(req.Remote); err == nil && u.Scheme == "file" {
			allowed = append(allowed, filepath.Dir(u.Path))
		}
		if target, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
			allowed = append(allowed, target)
		}
		allowed = append(allowed, req.Keyrings...)
		if path := os.Getenv("SYSTEMD_OPENPGP_KEYRING"); path != "" {
			allowed = append(allowed, path)
		}
	case transfer.PullOCI:
		// Logins and files about registries have been read.
		if path := req.OCI.Path(); path != "" {
			allowed = append(allowed, path)
		}
		if target, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
			allowed = append(allowed, target)
		}
	case transfer.ImportFS:
		if path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(req.File.Fd()))); err == nil {
			allowed = append(allowed, path)
		}
	}
	for _, path := range []string{req.Source, directPath(req)} {
		if path == "" {
			continue
		}
		_ = os.MkdirAll(filepath.Dir(path), 0o700)
		writable = append(writable, filepath.Dir(path))
		if real, err := filepath.EvalSymlinks(path); err == nil {
			writable = append(writable, filepath.Dir(real))
		}
	}
	for _, path := range allowed {
		if err := allow(int(fd), path, readRights, handled); err != nil {
			return err
		}
	}
	for _, path := range writable {
		if err := allow(int(fd), path, handled, handled); err != nil {
			return err
		}
	}
	return allThreads("landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
}

// layers are where the parts of a mount stack lie, which may be anywhere.
func layers(kind transfer.Kind, stack string) []string {
	if kind != transfer.ExportOCI {
		return nil
	}
	var list []string
	entries, _ := os.ReadDir(stack)
	for _, entry := range entries {
		if path, err := filepath.EvalSymlinks(filepath.Join(stack, entry.Name())); err == nil {
			list = append(list, path)
		}
	}
	return list
}

func directPath(req transfer.Request) string {
	if req.Direct == nil {
		return ""
	}
	return req.Direct.Path
}

// allow adds a rule for what is beneath path; nothing for a path that is not there, or
// that we may not see anyway.
func allow(ruleset int, path string, rights, handled uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
			return nil
		}
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	rights &= handled
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fileRights
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return &os.PathError{Op: "landlock_add_rule", Path: path, Err: errno}
	}
	return nil
}
