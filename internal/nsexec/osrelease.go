package nsexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"machined/internal/envfile"
	"machined/internal/sys"
)

const maxOSRelease = 64 << 10 // bytes; real files have less than 1 KiB

// OSRelease reads os-release(5) of the machine whose leader is p. If owner, the
// user who registered it, is not root, the file must be one that everybody may
// read: it may be any file of the host's, bound there in a user namespace.
func OSRelease(ctx context.Context, p *sys.Process, owner uint32) (envfile.Pairs, error) {
	return within(ctx, p, func(_ context.Context, p *sys.Process) (envfile.Pairs, error) {
		root, err := sys.OpenRootOf(p)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return readOSRelease(int(root.Fd()), owner != 0)
	}, nil)
}

func readOSRelease(root int, public bool) (envfile.Pairs, error) {
	var err error
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		var data []byte
		data, err = readSmall(root, path, maxOSRelease, public)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return ParseOSRelease(data)
	}
	return nil, err
}

// readSmall reads a regular file beneath root. Files of the kernel's own file
// systems are refused: they tell of the reader, and reading may block; with
// public, so are files that not everybody may read (EACCES).
func readSmall(root int, path string, limit int64, public bool) ([]byte, error) {
	node, err := sys.OpenIn(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at %q: %w", path, err)
	}
	if err := unix.Fstatfs(int(node.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("look at %q: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || fs.Type == unix.PROC_SUPER_MAGIC || fs.Type == unix.SYSFS_MAGIC {
		return nil, fmt.Errorf("read %q: no regular file: %w", path, unix.EBADMSG)
	}
	if public && st.Mode&unix.S_IROTH == 0 {
		return nil, fmt.Errorf("read %q: not for everybody: %w", path, unix.EACCES)
	}
	if st.Size > limit {
		return nil, fmt.Errorf("read %q: longer than %d bytes: %w", path, limit, unix.EFBIG)
	}
	f, err := sys.Reopen(node, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %q: longer than %d bytes: %w", path, limit, unix.EFBIG)
	}
	return data, nil
}

// ParseOSRelease parses os-release(5). Text that the bus could not carry is
// unix.EBADMSG.
func ParseOSRelease(data []byte) (envfile.Pairs, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("parse os-release: not UTF-8: %w", unix.EBADMSG)
	}
	return envfile.Parse(string(data)), nil
}
