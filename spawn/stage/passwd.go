package stage

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// accountLine finds a line of a tree's own list of users or groups (passwd(5),
// group(5)) by its name or number.
func accountLine(root tree, database, key string) (string, error) {
	data, err := accountFile(root, "/etc/"+database)
	if err != nil {
		return "", err
	}
	fields := map[string]int{"passwd": 7, "group": 3}[database]
	for line := range strings.Lines(data) {
		line = strings.TrimRight(line, "\n")
		f := strings.Split(line, ":")
		if len(f) >= fields && (f[0] == key || f[2] == key) {
			return line, nil
		}
	}
	return "", errors.New("no such user in the image")
}

// groupsOf are the groups that a tree's group(5) has a user in. known is false
// where there is no such file.
func groupsOf(root tree, u passwd) (groups []uint32, known bool) {
	data, err := accountFile(root, "/etc/group")
	if err != nil {
		return nil, false
	}
	groups = []uint32{u.gid}
	for line := range strings.Lines(data) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), u.name) {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && !slices.Contains(groups, uint32(n)) {
			groups = append(groups, uint32(n))
		}
	}
	return groups, true
}

// parseInitgroups reads the line of getent initgroups: a name and numbers.
func parseInitgroups(line string) (groups []uint32) {
	words := strings.Fields(line)
	for _, word := range words[min(1, len(words)):] {
		if n, err := strconv.ParseUint(word, 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// accountFile reads a file of a tree that may be anything.
func accountFile(root tree, name string) (string, error) {
	fd, err := root.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", errors.New(name + " of the image is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, passwdSize))
	return string(data), err
}
