package transfer

import (
	"archive/tar"
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// nameTable turns the names of users and groups in ACLs into numbers, as the
// unpacked tree and the headers of the archive have them. GNU tar writes ACLs by
// name only.
type nameTable struct{ users, groups map[string]uint32 }

// maxNames bounds how many names are remembered, and maxName how long they are
// (LOGIN_NAME_MAX).
const (
	maxNames = 10_000
	maxName  = 256
)

func newNames() *nameTable {
	return &nameTable{users: map[string]uint32{}, groups: map[string]uint32{}}
}

func (t *nameTable) learn(h *tar.Header) {
	remember(t.users, h.Uname, h.Uid)
	remember(t.groups, h.Gname, h.Gid)
}

func remember(table map[string]uint32, name string, id int) {
	if name == "" || len(name) > maxName {
		return
	}
	switch old, known := table[name]; {
	case known && old == uint32(id):
	case known || len(table) < maxNames:
		table[strings.Clone(name)] = uint32(id) // the header holds more than the name
	}
}

// read takes in the tree's passwd(5) and group(5), which count more.
func (t *nameTable) read(root *os.File) {
	for file, table := range map[string]map[string]uint32{"etc/passwd": t.users, "etc/group": t.groups} {
		f, err := sys.OpenIn(int(root.Fd()), file, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
		for lines.Scan() {
			fields := strings.Split(lines.Text(), ":")
			if len(fields) < 3 {
				continue
			}
			if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
				table[fields[0]] = uint32(id)
			}
		}
		_ = f.Close()
	}
}

// aclWords takes the text of an ACL apart.
func aclWords(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' || r == ' ' })
}

// aclName returns the name in an entry of an ACL that has no number for it.
func aclName(word string) (table byte, name string) {
	parts := strings.Split(word, ":")
	if len(parts) < 3 || parts[1] == "" || parts[0] == "" || parts[0][0] != 'u' && parts[0][0] != 'g' {
		return 0, ""
	}
	if _, err := strconv.ParseUint(parts[1], 10, 32); err == nil {
		return 0, ""
	}
	if len(parts) > 3 {
		if _, err := strconv.ParseUint(parts[3], 10, 32); err == nil {
			return 0, ""
		}
	}
	return parts[0][0], parts[1]
}

// namesIn says whether an ACL needs resolve.
func namesIn(text string) bool {
	for _, word := range aclWords(text) {
		if _, name := aclName(word); name != "" {
			return true
		}
	}
	return false
}

// resolve replaces names by numbers. An ACL with an unknown name is not ok.
func (t *nameTable) resolve(text string) (string, bool) {
	words := aclWords(text)
	for i, word := range words {
		table, name := aclName(word)
		if name == "" {
			continue
		}
		ids := t.users
		if table == 'g' {
			ids = t.groups
		}
		id, ok := ids[name]
		if !ok {
			return "", false
		}
		parts := strings.Split(word, ":")
		parts[1] = strconv.FormatUint(uint64(id), 10)
		words[i] = strings.Join(parts[:3], ":")
	}
	return strings.Join(words, ","), true
}
