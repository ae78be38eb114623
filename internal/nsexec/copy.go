package nsexec

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Copy says what to copy between the host and a machine. Both paths are
// absolute and normalized.
type Copy struct {
	Source, Destination string
	ToMachine           bool // else from it
	Replace             bool // overwrite existing files
	// Progress is told the bytes copied so far, about ten times a second, and
	// how many there are, 0 where that is not known: of a tree.
	Progress func(copied, total uint64)
}

// helperName is argument 0 of the helper process.
const helperName = "machined-copy"

// copyJob is what the helper is told on descriptor 3, which also tells it by
// its end that its owner is gone. Descriptor 4 is the source's parent directory,
// 5 the destination's.
type copyJob struct {
	From, To string // one path element each
	Replace  bool
	// Owner is whose every new file becomes; null keeps owners.
	Owner *owner
	// FSUID and FSGID are who creates files, for file systems that map IDs.
	FSUID, FSGID uint32
}

type owner struct{ UID, GID uint32 }

// copyEvent is one line of the helper's answer.
type copyEvent struct {
	Bytes uint64 `json:",omitempty"`
	Total uint64 `json:",omitempty"`
	Done  bool   `json:",omitempty"`
	Error string `json:",omitempty"`
	Errno int    `json:",omitempty"`
}

// stopGrace is how long a copy that is called off has to take back the file
// that it is at, before it is killed.
const stopGrace = 2 * time.Second

// Run copies in a helper process, which ends with ctx and with this process; no
// half of a file is left then, but files that are whole stay.
// Directories merge; existing files are unix.EEXIST unless Replace; symlinks
// are copied, never followed. With a shifted user namespace all that is copied
// becomes root's on the side it goes to, else owners are kept. A user's own
// machined gives files to nobody else.
func (c Copy) Run(ctx context.Context, p *sys.Process) error {
	uid, gid, err := rootIDs(p)
	if err != nil {
		return err
	}
	inside, outside := c.Source, c.Destination
	if c.ToMachine {
		inside, outside = outside, inside
	}
	const how = unix.O_RDONLY | unix.O_DIRECTORY
	insideDir, err := within(ctx, p, func(_ context.Context, p *sys.Process) (*os.File, error) {
		root, err := sys.OpenRootOf(p)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return sys.OpenIn(int(root.Fd()), path.Dir(inside), how)
	}, closeFile)
	if err != nil {
		return fmt.Errorf("open directory of %q in the machine: %w", inside, err)
	}
	defer insideDir.Close()
	fd, err := unix.Open(filepath.Dir(outside), how|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory of %q on the host: %w", outside, err)
	}
	outsideDir := os.NewFile(uintptr(fd), filepath.Dir(outside))
	defer outsideDir.Close()

	job := copyJob{From: element(c.Source), To: element(c.Destination), Replace: c.Replace}
	source, target := insideDir, outsideDir
	if c.ToMachine {
		source, target = outsideDir, insideDir
		job.FSUID, job.FSGID = uid, gid
	}
	switch me := os.Geteuid(); {
	case me != 0:
		job.Owner = &owner{uint32(me), uint32(os.Getegid())}
	case uid != 0 || gid != 0:
		job.Owner = &owner{}
		if c.ToMachine {
			job.Owner = &owner{uid, gid}
		}
	}
	if err := c.helper(ctx, job, source, target); err != nil {
		return fmt.Errorf("copy %q to %q: %w", c.Source, c.Destination, err)
	}
	return nil
}

// element is the last element of an absolute path; "." for the root itself.
func element(p string) string {
	if p == "/" {
		return "."
	}
	return path.Base(p)
}

func (c Copy) helper(ctx context.Context, job copyJob, source, target *os.File) error {
	control, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{helperName}
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{control, source, target}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = ours.Close
	cmd.WaitDelay = stopGrace
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = control.Close()
	if err != nil {
		return fmt.Errorf("start copy process: %w", err)
	}
	encodeErr := json.NewEncoder(ours).Encode(job)
	last := c.events(out)
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case last.Done:
		return nil
	case last.Errno != 0:
		return fmt.Errorf("%s: %w", last.Error, syscall.Errno(last.Errno))
	case last.Error != "":
		return errors.New(last.Error)
	case encodeErr != nil:
		return encodeErr
	}
	return fmt.Errorf("copy process ended without an answer: %w", waitErr)
}

// events reads the helper's answer to its end and returns the last event.
func (c Copy) events(r io.Reader) copyEvent {
	var last copyEvent
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		var e copyEvent
		if json.Unmarshal(scanner.Bytes(), &e) != nil {
			continue
		}
		last = e
		if c.Progress != nil && e.Bytes > 0 {
			c.Progress(e.Bytes, e.Total)
		}
	}
	return last
}
