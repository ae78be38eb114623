package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"machined/internal/envfile"
	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// metadataMax bounds each file that is read out of an image, in bytes.
const metadataMax = 64 << 10

// Metadata is what an image says about itself. Nothing in it can be trusted.
type Metadata struct {
	Hostname    string
	MachineID   [16]byte // zero: none
	MachineInfo envfile.Pairs
	OSRelease   envfile.Pairs
}

// Metadata reads what the image called name says about itself. Files that are
// missing or malformed leave their field empty.
func (s *Store) Metadata(ctx context.Context, name string) (Metadata, error) {
	img, err := s.Get(ctx, name)
	if err != nil {
		return Metadata{}, err
	}
	fail := func(err error) (Metadata, error) {
		return Metadata{}, on(name, err)
	}
	if !img.IsHost() {
		lock, err := s.lockImage(img, false)
		if err != nil {
			return fail(err)
		}
		defer lock.Close()
	}
	if img.Type == TypeMStack {
		m, err := stackMetadata(img.Path)
		if err != nil {
			return fail(err)
		}
		return m, nil
	}
	if img.Type == TypeRaw || img.Type == TypeBlock {
		m, err := rawMetadata(img.Path)
		if err != nil {
			return fail(err)
		}
		return m, nil
	}
	root, err := os.Open(img.Path)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = root.Close() }()
	return readMetadata(int(root.Fd())), nil
}

func readMetadata(root int) Metadata {
	return metadataOf(func(name string) (string, error) { return readIn(root, name) })
}

// metadataOf makes metadata of the files that read finds in an image.
func metadataOf(read func(name string) (string, error)) Metadata {
	var m Metadata
	if data, err := read("etc/hostname"); err == nil {
		m.Hostname = parseHostname(data)
	}
	if data, err := read("etc/machine-id"); err == nil {
		m.MachineID = parseMachineID(data)
	}
	if data, err := read("etc/machine-info"); err == nil {
		m.MachineInfo = parseEnv(data)
	}
	for _, path := range []string{"etc/os-release", "usr/lib/os-release"} {
		data, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			m.OSRelease = parseEnv(data)
		}
		break
	}
	return m
}

// readIn reads a small regular file below root, as the image sees it.
func readIn(root int, path string) (string, error) {
	node, err := sys.OpenIn(root, path, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer func() { _ = node.Close() }()
	st, err := node.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > metadataMax {
		return "", fmt.Errorf("read %q: not a regular file of at most %d bytes", path, metadataMax)
	}
	file, err := sys.Reopen(node, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, metadataMax))
	return string(data), err
}

// Hostname returns the host name in the image's /etc/hostname, "" when it has none.
func (s *Store) Hostname(ctx context.Context, name string) (string, error) {
	m, err := s.Metadata(ctx, name)
	return m.Hostname, err
}

// MachineID returns the image's machine id, zero when it has none.
func (s *Store) MachineID(ctx context.Context, name string) ([16]byte, error) {
	m, err := s.Metadata(ctx, name)
	return m.MachineID, err
}

// MachineInfo returns the image's /etc/machine-info.
func (s *Store) MachineInfo(ctx context.Context, name string) (envfile.Pairs, error) {
	m, err := s.Metadata(ctx, name)
	return m.MachineInfo, err
}

// OSRelease returns the image's os-release file.
func (s *Store) OSRelease(ctx context.Context, name string) (envfile.Pairs, error) {
	m, err := s.Metadata(ctx, name)
	return m.OSRelease, err
}

// parseHostname takes the first line that is not a comment (hostname(5)).
func parseHostname(data string) string {
	for line := range strings.SplitSeq(data, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		line = strings.TrimSuffix(line, ".")
		if len(line) > 64 || strings.ContainsFunc(line, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", r)
		}) {
			return ""
		}
		return line
	}
	return ""
}

// parseMachineID reads 32 hexadecimal digits (machine-id(5)); anything else,
// "uninitialized" too, is no id.
func parseMachineID(data string) (id [16]byte) {
	raw, err := hex.DecodeString(strings.TrimSpace(data))
	if err == nil && len(raw) == len(id) {
		copy(id[:], raw)
	}
	return id
}

// parseEnv reads assignments as os-release(5) has them. What is no UTF-8, which the
// bus could not carry, becomes U+FFFD.
func parseEnv(data string) envfile.Pairs { return envfile.Parse(strings.ToValidUTF8(data, "\uFFFD")) }
