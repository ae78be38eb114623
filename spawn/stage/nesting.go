package stage

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// nesting is where complete copies of the machine's own /proc and /sys are. The
// kernel lets a user namespace mount a /proc or /sys only where it sees one already
// that nothing covers (mount_too_revealing() in fs/namespace.c), and parts of the
// ones in their usual places are covered. Only root can enter the directory; its
// mounts are seen by the kernel all the same.
const nesting = pinDir + "/nesting"

// nestingDir makes the mount points. A /sys of a network that is not the machine's
// own can be mounted from outside only.
func (o *outer) nestingDir() error {
	o.asMachineRoot()
	err := errors.Join(
		o.root.mkdir(nesting, 0o700), o.root.mkdir(nesting+"/proc", 0o555), o.root.mkdir(nesting+"/sys", 0o555),
	)
	o.asHost()
	if err != nil || o.plan.NewNet {
		return err
	}
	return o.root.mountFS(nesting+"/sys", "sysfs", o.plan.nestingAttrs())
}

// nestingMounts fills the mount points with what belongs to the machine's own
// namespaces.
func (in *inner) nestingMounts() error {
	if !in.plan.Nesting {
		return nil
	}
	if err := in.root.mountFS(nesting+"/proc", "proc", in.plan.nestingAttrs()); err != nil {
		return err
	}
	if !in.plan.NewNet {
		return nil
	}
	return in.root.mountFS(nesting+"/sys", "sysfs", in.plan.nestingAttrs())
}

// nestingAttrs lets be written what the kernel takes from the root of a user
// namespace. The root of none is the host's, and may write to nothing.
func (p *Plan) nestingAttrs() int {
	attrs := nosuid | nodev | noexec
	if p.Userns == nil {
		attrs |= readonly
	}
	return attrs
}

// leaf moves this process out of the cgroup that the machine sees as its root, as
// an init would: no controller can be handed on by a cgroup with processes
// (cgroups(7), "no internal processes").
func (in *inner) leaf() error {
	if !in.plan.Nesting || in.plan.Boot || !in.plan.CgroupNS {
		return nil
	}
	const dir = cgroupRoot + "/init"
	if err := in.root.mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup %s: %w", dir, err)
	}
	controllers, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(controllers)) {
		err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", []byte("+"+name), 0)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("hand on cgroup controller %s: %w", name, err)
		}
	}
	return nil
}
