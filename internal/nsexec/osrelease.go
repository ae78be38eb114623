package nsexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

const maxOSRelease = 64 << 10 // bytes; real files have less than 1 KiB

// OSRelease reads os-release(5) of the machine whose leader is p. If owner, the
// user who registered it, is not root, the file must be one that everybody may
// read: it may be any file of the host's, bound there in a user namespace.
func OSRelease(ctx context.Context, p *sys.Process, owner uint32) (map[string]string, error) {
	return within(ctx, p, func(_ context.Context, p *sys.Process) (map[string]string, error) {
		root, err := sys.OpenRootOf(p)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return readOSRelease(int(root.Fd()), owner != 0)
	}, nil)
}

func readOSRelease(root int, public bool) (map[string]string, error) {
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

// ParseOSRelease parses os-release(5): lines KEY=VALUE with shell quoting, no
// expansion. Lines that are none of that are left out, as are keys and values
// that the bus could not carry.
func ParseOSRelease(data []byte) (map[string]string, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("parse os-release: not UTF-8: %w", unix.EBADMSG)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, raw, ok := strings.Cut(line, "=")
		if !ok || !validKey(key) {
			continue
		}
		value, ok := unquote(raw)
		if !ok || strings.ContainsRune(value, 0) {
			continue
		}
		out[key] = value
	}
	return out, nil
}

func validKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return key != ""
}

// unquote takes a shell word apart: single and double quotes with their
// escapes, and a backslash outside of quotes.
func unquote(s string) (string, bool) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == quote {
				quote = 0
				continue
			}
			b.WriteByte(c)
		case c == '\\':
			i++
			if i == len(s) {
				return "", false
			}
			if quote == '"' && !strings.ContainsRune("\"\\`$", rune(s[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case quote == '"':
			if c == quote {
				quote = 0
				continue
			}
			b.WriteByte(c)
		case c == '\'' || c == '"':
			quote = c
		case c == ' ' || c == '\t':
			// The word is over; a comment may follow, anything else is no assignment.
			rest := strings.TrimSpace(s[i:])
			return b.String(), rest == "" || rest[0] == '#'
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), quote == 0
}
