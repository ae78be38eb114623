package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// CgroupNode is a control group with its processes and children.
type CgroupNode struct {
	Name      string
	Processes []ProcessLine
	Children  []*CgroupNode
}

// ProcessLine is one process of a tree.
type ProcessLine struct {
	PID     uint32
	Command string
}

// Add puts a process into the group at path, relative to the node.
func (n *CgroupNode) Add(path string, p ProcessLine) {
	path = strings.Trim(path, "/")
	if path == "" {
		n.Processes = append(n.Processes, p)
		return
	}
	head, tail, _ := strings.Cut(path, "/")
	for _, child := range n.Children {
		if child.Name == head {
			child.Add(tail, p)
			return
		}
	}
	child := &CgroupNode{Name: head}
	n.Children = append(n.Children, child)
	child.Add(tail, p)
}

// Find returns the group at path, relative to the node; nil if there is none.
func (n *CgroupNode) Find(path string) *CgroupNode {
	for head := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if n == nil || head == "" {
			break
		}
		i := slices.IndexFunc(n.Children, func(child *CgroupNode) bool { return child.Name == head })
		if i < 0 {
			return nil
		}
		n = n.Children[i]
	}
	return n
}

// Write draws the tree, each line after prefix, shortened to width columns
// behind it; 0 is no limit.
func (n *CgroupNode) Write(w io.Writer, t *Terminal, prefix string, width int) {
	sort.Slice(n.Processes, func(i, j int) bool { return n.Processes[i].PID < n.Processes[j].PID })
	sort.Slice(n.Children, func(i, j int) bool { return n.Children[i].Name < n.Children[j].Name })
	digits := 0
	if len(n.Processes) > 0 {
		digits = len(strconv.FormatUint(uint64(n.Processes[len(n.Processes)-1].PID), 10))
	}
	for i, p := range n.Processes {
		branch := "├─"
		if i == len(n.Processes)-1 && len(n.Children) == 0 {
			branch = "└─"
		}
		command := Printable(p.Command, false)
		if command == "" {
			command = "n/a"
		}
		if width > 0 {
			// Stock keeps 20 columns however deep the tree is.
			command = Ellipsize(command, max(width-digits-3, 20))
		}
		fmt.Fprintf(w, "%s%s%s\n", prefix, branch, t.Paint(t.Grey(), fmt.Sprintf("%*d %s", digits, p.PID, command)))
	}
	for i, child := range n.Children {
		branch, next := "├─", "│ "
		if i == len(n.Children)-1 {
			branch, next = "└─", "  "
		}
		fmt.Fprintf(w, "%s%s%s\n", prefix, branch, Printable(child.Name, false))
		deeper := 0
		if width > 0 {
			deeper = max(width-2, 1)
		}
		child.Write(w, t, prefix+next, deeper)
	}
}

// ReadCgroup reads the processes below a directory of the cgroup file system;
// for hosts whose service manager cannot be asked.
func ReadCgroup(dir string) (*CgroupNode, error) {
	root := &CgroupNode{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			// Threaded groups cannot be read; the tree goes on without them.
			return nil
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.ParseUint(field, 10, 32); err == nil && pid > 0 {
				root.Add(strings.TrimPrefix(path, dir), ProcessLine{uint32(pid), commandLine(int(pid))})
			}
		}
		return nil
	})
	return root, err
}

// commandLine is a process's command line, words quoted as a shell would
// need it; the name in quotes where there is none.
func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	words := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
	if len(words) == 1 && words[0] == "" {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return `"(` + strings.TrimSpace(string(name)) + `)"`
	}
	for i, word := range words {
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\`$*?[]#~=%!|&;()<>{}") && !strings.HasPrefix(word, "--") {
			words[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace(word) + `"`
		}
	}
	return strings.Join(words, " ")
}

// CgroupRoot is where the v2 hierarchy is mounted; "" when it is not.
func CgroupRoot() string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(line, " - ")
		if fields := strings.Fields(before); ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4]
		}
	}
	return ""
}
