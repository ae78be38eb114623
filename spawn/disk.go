package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/dm"
	"machined/internal/gpt"
	"machined/internal/loopdev"
	"machined/internal/pathlock"
	"machined/spawn/stage"
)

// readOnlyFS are file systems that can't be written to, whatever they lie on.
var readOnlyFS = map[string]bool{"squashfs": true, "erofs": true, "iso9660": true}

// attachDisk makes block devices of the partitions of a disk image.
func (m *machine) attachDisk(ctx context.Context) error {
	o := m.opts
	path, err := filepath.EvalSymlinks(o.Image)
	if err != nil {
		return fmt.Errorf("open image %q: %w", o.Image, errors.Unwrap(err))
	}
	m.root = path
	readOnly := o.ReadOnly || o.Ephemeral || o.Volatile != "no"
	lock, err := pathlock.Image(path, !readOnly)
	if errors.Is(err, pathlock.ErrBusy) {
		return fmt.Errorf("Disk image %s is currently busy.", o.Image)
	}
	if err != nil {
		return err
	}
	m.oweLocks(lock.Files())
	f, readOnly, err := openDisk(path, readOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := m.contents(f, path)
	if err != nil {
		return fmt.Errorf("image %q: %w", o.Image, err)
	}
	mounts, err := gpt.Mounts(c.found)
	if err != nil {
		return fmt.Errorf("image %q: %w", o.Image, err)
	}
	for _, p := range mounts {
		part, err := m.attachPartition(ctx, f, c, p, readOnly)
		if err != nil {
			return fmt.Errorf("image %q: %w", o.Image, err)
		}
		m.place(part)
	}
	if m.plan.Root.Device == "" {
		m.plan.Root.Memory = true // only /usr is on the image
	}
	m.plan.Root.Need, m.plan.Root.Shown = m.needs(), o.Image
	if readOnly && !o.Ephemeral && o.Volatile == "no" {
		m.plan.Root.ReadOnly = true
	}
	if o.Ephemeral {
		return m.ephemeral(path)
	}
	return nil
}

// openDisk opens an image, read-only where it can't be written to.
func openDisk(path string, readOnly bool) (*os.File, bool, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		readOnly = true
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, false, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, false, err
	}
	if t := st.Mode().Type(); t != 0 && t != os.ModeDevice {
		_ = f.Close()
		return nil, false, fmt.Errorf("image %q is neither a regular file nor a block device", path)
	}
	return f, readOnly, nil
}

// attachPartition makes a partition a block device, one that is decrypted or verified
// where it has to be. All of them go away with this process.
func (m *machine) attachPartition(ctx context.Context, f *os.File, c *contents, p gpt.Mount, readOnly bool) (stage.Partition, error) {
	verified := c.guards(p.Designator)
	ro := readOnly || p.ReadOnly() || verified
	switch p.FSType {
	case "":
		return stage.Partition{}, fmt.Errorf("the file system of partition %d (%s) is unknown", p.Number, p.Designator)
	case "DM_verity_hash", "swap":
		return stage.Partition{}, fmt.Errorf("partition %d (%s) is no file system but %s", p.Number, p.Designator, p.FSType)
	}
	dev, err := loopdev.Attach(f, p.Offset, p.Size, ro || readOnlyFS[p.FSType])
	if err != nil {
		return stage.Partition{}, fmt.Errorf("attach partition %d: %w", p.Number, err)
	}
	m.owe(chore{Kind: choreClose}, dev.File)
	device, fstype := dev.Path, p.FSType
	var mapped *dm.Device
	switch {
	case fstype == luksFS:
		mapped, fstype, err = m.decrypted(ctx, dev, p, ro)
	case verified:
		mapped, err = m.verified(f, c.verity, dev, p)
	}
	if err != nil {
		return stage.Partition{}, err
	}
	if mapped != nil {
		m.owe(chore{Kind: choreClose}, mapped.File)
		device = mapped.Path
	}
	if !ro {
		if err := m.fsck(ctx, device, fstype); err != nil {
			return stage.Partition{}, fmt.Errorf("partition %d (%s): %w", p.Number, p.Designator, err)
		}
	}
	return stage.Partition{
		Device: device, FSType: fstype, Dest: p.Where, Designator: p.Designator,
		ReadOnly: ro || readOnlyFS[fstype], Grow: p.GrowFS() && !ro,
	}, nil
}

// place enters an attached partition in the plan.
func (m *machine) place(part stage.Partition) {
	r := &m.plan.Root
	if part.Designator != "root" {
		r.Extra = append(r.Extra, part)
		return
	}
	r.Device, r.FSType, r.Grow = part.Device, part.FSType, part.Grow
	r.DeviceReadOnly = part.ReadOnly
	// What is read-only by itself stays so unless changes go elsewhere.
	if part.ReadOnly && !m.opts.Ephemeral && m.opts.Volatile == "no" {
		r.ReadOnly = true
	}
}

// fsck lets the host's checker repair what it can without asking, before a file
// system is written to. A host without one, and file systems that check
// themselves, go without.
func (m *machine) fsck(ctx context.Context, device, fstype string) error {
	option := map[string]string{"ext2": "-p", "ext3": "-p", "ext4": "-p", "vfat": "-a"}[fstype]
	if option == "" {
		return nil
	}
	program, err := exec.LookPath("fsck." + fstype)
	if err != nil {
		return nil
	}
	out, err := exec.CommandContext(ctx, program, option, device).CombinedOutput()
	var exit *exec.ExitError
	// 1 and 2: errors were corrected (fsck(8)).
	if errors.As(err, &exit) && exit.Exited() && exit.ExitCode()&^3 == 0 {
		return nil
	}
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("file system check failed: %w: %s", err, strings.ToValidUTF8(line, "?"))
	}
	return nil
}

// needs are the files of which a root has to have one, in the order of preference.
func (m *machine) needs() []string {
	switch {
	case m.plan.Root.Custom != nil || m.opts.PivotNew != "" || m.opts.Bundle != nil || m.opts.Boot() && m.opts.Knobs.SkipOSRelease:
		return nil
	case m.opts.Boot():
		return []string{"etc/os-release", "usr/lib/os-release"}
	}
	return []string{"usr"}
}

// refusal says in stock's words that a root has none of what it needs.
func refusal(shown string, boot bool) error {
	if boot {
		return fmt.Errorf("Directory %s doesn't look like an OS root directory (os-release file is missing). Refusing.", shown)
	}
	return fmt.Errorf("Directory %s doesn't look like it has an OS tree (/usr/ directory is missing). Refusing.", shown)
}

// rooted looks at a disk image's tree once it is mounted, on the thread that does that.
func (m *machine) rooted(root int) error {
	r := &m.plan.Root
	if r.Path != "" {
		return nil
	}
	have := len(r.Need) == 0
	for _, name := range r.Need {
		if fd, err := openIn(root, name, unix.O_PATH); err == nil {
			_ = unix.Close(fd)
			have = true
		}
	}
	if !have {
		return refusal(r.Shown, m.opts.Boot())
	}
	if id, ok := readID(root); ok {
		m.id, m.plan.UUID = id, dashed(id)
	}
	return m.linkJournal()
}
