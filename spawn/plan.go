package spawn

import (
	"crypto/rand"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/internal/seccomp"
	"machined/spawn/settings"
	"machined/spawn/stage"
)

// makePlan decides everything that does not depend on the image's contents.
func (m *machine) makePlan() error {
	o, p := m.opts, &m.plan
	p.Machine, p.Hostname = o.Machine, o.Hostname
	if p.Hostname == "" {
		p.Hostname = o.Machine
	}
	// What is written over a read-only root by --volatile=overlay is gone at the end.
	p.Root = stage.Root{ReadOnly: o.ReadOnly && o.Volatile != "overlay", Volatile: o.Volatile, PivotNew: o.PivotNew, PivotOld: o.PivotOld, Ownership: o.Ownership}
	p.PrivateNet, p.NetnsPath = o.PrivateNet, o.NetnsPath
	p.NewNet = o.PrivateNet && o.NetnsPath == ""
	p.ShareIPC, p.SharePID, p.ShareUTS = o.Knobs.ShareIPC, o.Knobs.SharePID, o.Knobs.ShareUTS
	p.CgroupNS, p.APIVFS, p.TmpfsTmp = o.Knobs.CgroupNS, o.Knobs.APIVFS, o.Knobs.TmpfsTmp
	p.Boot, p.PID2, p.StopSignal = o.Boot(), o.PID2(), int(o.KillSignal)
	p.Manager = o.Knobs.Manager
	p.User, p.Argv, p.Chdir = o.User, o.Args, o.Chdir
	if p.Boot {
		p.Argv, p.Env = bootArguments(o.Args)
	}
	p.NoNewPrivs, p.Nesting = o.NoNewPrivs, o.Nesting
	p.CapBounding, p.CapAmbient = o.Bounding(), o.CapAmbient
	p.OOMScore, p.Affinity = o.OOMScore, o.CPUs
	if o.Register {
		p.Propagate = filepath.Join(PropagateDir, o.Machine)
	}
	p.ListenFDs = len(m.io.Inherit)
	p.CredsOpen = o.NoNewPrivs && o.User != "" && o.User != "root" && o.User != "0" && !o.Boot() && !o.PID2()
	for _, id := range o.credOrder {
		p.Credentials = append(p.Credentials, stage.Credential{ID: id, Data: o.Credentials[id]})
	}
	p.Env = append(p.Env, hostEnv()...)
	p.Env = append(p.Env, o.Env...)
	p.OSRelease = hostOSRelease()
	if err := m.planMounts(); err != nil {
		return err
	}
	if err := m.planLimits(); err != nil {
		return err
	}
	if o.Personality != "" {
		persona, err := personality(o.Personality)
		if err != nil {
			return err
		}
		p.Personality = &persona
	}
	m.planConsole()
	if err := m.planBundle(); err != nil {
		return err
	}
	return m.planSeccomp()
}

// bootArguments divides the arguments of an init as the kernel does with its own
// command line: what is an assignment and no dotted name goes to the environment.
func bootArguments(args []string) (argv, env []string) {
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		name = strings.ReplaceAll(name, "-", "_")
		if ok && settings.ValidVariable(name) {
			env = append(env, name+"="+value)
		} else {
			argv = append(argv, a)
		}
	}
	return argv, env
}

func (m *machine) planSeccomp() error {
	o := m.opts
	if o.Knobs.NoSeccomp {
		return nil
	}
	if o.Families.Restricts() {
		m.plan.Seccomp = append(m.plan.Seccomp, filterBytes(seccomp.CompileFamilies(o.Families)))
	}
	if done, err := m.bundleFilter(); done {
		return err
	}
	profile := seccomp.Profile{
		Allow: o.SyscallAllow, Deny: o.SyscallDeny, Caps: m.plan.CapBounding | m.plan.CapAmbient, SuppressSync: o.NoSync,
		ForeignTerminal: o.Console == "pipe" && (isTerminal(m.io.Stdin) || isTerminal(m.io.Stdout) || isTerminal(m.io.Stderr)),
	}
	switch {
	case o.Nesting && o.Userns():
		profile.Allow = append(strings.Fields(nestingCalls), profile.Allow...)
	case o.Nesting:
		profile.Absent = strings.Fields(absentCalls)
	}
	if !o.Userns() && !slices.Contains(o.SyscallAllow, remapCall) {
		profile.Deny = append(slices.Clone(profile.Deny), remapCall)
	}
	filter, err := seccomp.Compile(profile)
	if err != nil {
		return fmt.Errorf("compile system call filter: %w", err)
	}
	m.plan.Seccomp = append(m.plan.Seccomp, filterBytes(filter))
	return nil
}

// remapCall (since 6.15) gives a copy of a mount other owners. Root of a machine
// without a user namespace could get behind /run/host/incoming by that. Programs
// have to do without it on older kernels, too.
const remapCall = "open_tree_attr"

// filterBytes is a filter as the kernel reads it, to cross an exec.
func filterBytes(filter []unix.SockFilter) []byte {
	if len(filter) == 0 {
		return nil
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(filter)*int(unsafe.Sizeof(filter[0])))
	return slices.Clone(raw)
}

// personality is the execution domain for an architecture's name (personality(2)).
func personality(arch string) (uint64, error) {
	const perLinux, perLinux32 = 0x0, 0x8
	native := map[string]string{"amd64": "x86-64", "arm64": "arm64", "386": "x86", "s390x": "s390x", "ppc64le": "ppc64-le"}[goarch]
	secondary := map[string]string{"amd64": "x86", "arm64": "arm", "s390x": "s390", "ppc64le": "ppc-le"}[goarch]
	switch arch {
	case native:
		return perLinux, nil
	case secondary:
		return perLinux32, nil
	}
	return 0, fmt.Errorf("Unknown or unsupported personality '%s'. (this machine's are %s)", arch, strings.TrimRight(native+" "+secondary, " "))
}

// planLimits starts from what the kernel gives to PID 1 and applies the options.
func (m *machine) planLimits() error {
	const inf = unix.RLIM_INFINITY
	nofile := uint64(524288)
	if data, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err == nil {
			nofile = min(nofile, n)
		}
	}
	limits := map[string]settings.Limit{
		"CPU": {Soft: inf, Hard: inf}, "FSIZE": {Soft: inf, Hard: inf}, "DATA": {Soft: inf, Hard: inf},
		"STACK": {Soft: 8 << 20, Hard: inf}, "CORE": {Soft: 0, Hard: inf}, "RSS": {Soft: inf, Hard: inf},
		"NOFILE": {Soft: 1024, Hard: nofile}, "MEMLOCK": {Soft: 8 << 20, Hard: 8 << 20}, "AS": {Soft: inf, Hard: inf},
		"LOCKS": {Soft: inf, Hard: inf}, "MSGQUEUE": {Soft: 819200, Hard: 819200}, "NICE": {}, "RTPRIO": {},
		"RTTIME": {Soft: inf, Hard: inf},
	}
	for _, name := range []string{"NPROC", "SIGPENDING"} {
		n, _ := settings.LimitResource(name)
		var l unix.Rlimit
		if unix.Prlimit(1, n, nil, &l) == nil {
			limits[name] = settings.Limit{Soft: l.Cur, Hard: l.Max}
		}
	}
	for name, l := range m.opts.Limits {
		limits[name] = l
	}
	m.plan.EarlyLimits = len(m.opts.SyscallDeny) > 0
	names := make([]string, 0, len(limits))
	for name := range limits {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n, ok := settings.LimitResource(name)
		if !ok {
			return fmt.Errorf("resource limit %q is unknown", name)
		}
		m.plan.Rlimits = append(m.plan.Rlimits, stage.Rlimit{Resource: n, Soft: limits[name].Soft, Hard: limits[name].Hard})
	}
	return nil
}

var idmapNames = map[settings.IDMap]string{
	settings.IDMapNone: "", settings.IDMapFull: "idmap", settings.IDMapRoot: "rootidmap", settings.IDMapOwner: "owneridmap",
}

func (m *machine) planMounts() error {
	for _, s := range m.opts.Mounts {
		mount := stage.Mount{
			Dest: path.Clean(s.Destination), ReadOnly: s.ReadOnly, Options: s.Options,
			Recursive: !s.Bind.NonRecursive, IDMap: idmapNames[s.Bind.IDMap],
		}
		for _, src := range s.Sources {
			source, err := m.mountSource(src)
			if err != nil {
				return err
			}
			mount.Sources = append(mount.Sources, source)
		}
		switch s.Kind {
		case settings.MountBind:
			mount.Kind = "bind"
		case settings.MountTmpfs:
			mount.Kind = "tmpfs"
		case settings.MountInaccessible:
			mount.Kind = "inaccessible"
		case settings.MountOverlay:
			mount.Kind = "overlay"
			if err := m.overlayWork(&mount); err != nil {
				return err
			}
		}
		if mount.Dest == "/" {
			m.plan.Root.Custom = &mount
			m.plan.Root.ReadOnly = m.plan.Root.ReadOnly || mount.ReadOnly
			continue
		}
		m.plan.Mounts = append(m.plan.Mounts, mount)
	}
	slices.SortStableFunc(m.plan.Mounts, func(a, b stage.Mount) int { return strings.Compare(a.Dest, b.Dest) })
	return nil
}

// mountSource resolves a source on the host; an empty one is a new directory.
func (m *machine) mountSource(s settings.Source) (stage.Source, error) {
	if s.InImage {
		return stage.Source{Path: s.Path, Inside: true}, nil
	}
	if s.Path == "" {
		dir, err := m.tempDir()
		return stage.Source{Path: dir}, err
	}
	return stage.Source{Path: s.Path}, nil
}

// overlayWork makes the work directory of a writable overlay: beside its upper
// directory, because it must be on the same file system. In the image it is the
// stage's to make, which resolves paths there.
func (m *machine) overlayWork(mount *stage.Mount) error {
	if mount.ReadOnly || len(mount.Sources) == 0 {
		return nil
	}
	upper := mount.Sources[len(mount.Sources)-1]
	if upper.Inside {
		return nil
	}
	dir, err := m.runDir(filepath.Dir(filepath.Clean(upper.Path)), ".#nspawn-work-", 0o700)
	if err != nil {
		return fmt.Errorf("make work directory of overlay: %w", err)
	}
	mount.WorkDir = dir
	return nil
}

// newID is a random UUID, version 4.
func newID() (id [16]byte) {
	_, _ = rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

func dashed(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
}
