//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// snapshot is what a host has that a machine could leave behind, one thing a line. It
// is read from outside, without a program in the host: it is taken after each of
// thousands of starts.
func snapshot(t *testing.T, h *host.Host) string {
	t.Helper()
	var s state
	for _, name := range namesIn(h.Path("/run/systemd/machines")) {
		s.add("state", name)
	}
	s.units(t, h)
	s.tree("cgroup", h, "/sys/fs/cgroup/machine.slice", func(_ string, d fs.DirEntry) bool { return d.IsDir() })
	s.kernel(t, h)
	for _, dir := range []string{"/run/systemd/nspawn/propagate", "/run/systemd/nspawn/unix-export"} {
		s.tree("propagate", h, dir, nil)
	}
	s.processes(t, h)
	return s.String()
}

// state collects lines: a kind of thing, and which one.
type state struct{ strings.Builder }

func (s *state) add(kind, what string) { fmt.Fprintln(s, kind, what) }

// namesIn are the names in a directory, sorted; none if it is not there.
func namesIn(dir string) []string {
	list, _ := os.ReadDir(dir)
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}

// tree adds what is below a directory of the host, if it is there. What goes away
// meanwhile is left out.
func (s *state) tree(kind string, h *host.Host, dir string, which func(path string, d fs.DirEntry) bool) {
	top := h.Path(dir)
	_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		path := strings.TrimPrefix(p, h.Root())
		if err == nil && p != top && (which == nil || which(path, d)) {
			s.add(kind, path)
		}
		return nil
	})
}

// unit is the beginning of what ListUnitsByPatterns tells of a unit.
type unit struct {
	Name, Description, Load, Active, Sub, Follows string
	Path                                          godbus.ObjectPath
	Job                                           uint32
	JobType                                       string
	JobPath                                       godbus.ObjectPath
}

// units adds the units that are a machine's or have been.
func (s *state) units(t *testing.T, h *host.Host) {
	t.Helper()
	conn, err := godbus.Connect("unix:path=" + h.Path("/run/dbus/system_bus_socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var list []unit
	err = conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").Call("org.freedesktop.systemd1.Manager.ListUnitsByPatterns", 0,
		[]string{}, []string{"machine-*", "*.scope", "systemd-nspawn@*"}).Store(&list)
	if err != nil {
		t.Fatalf("list units of %s: %v", h.Name, err)
	}
	for _, u := range list {
		if u.Name != "init.scope" && !strings.HasPrefix(u.Name, "session-") && slices.Contains([]string{"running", "abandoned", "dead", "failed"}, u.Sub) {
			s.add("unit", u.Name)
		}
	}
}

// kernel adds mounts and interfaces.
func (s *state) kernel(t *testing.T, h *host.Host) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", h.PID())
	mounts, err := os.ReadFile(proc + "mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		where := strings.Fields(line)[4]
		if !strings.Contains(where, "/run/credentials") && !strings.Contains(where, "/proc/sys/fs/binfmt") {
			s.add("mount", where)
		}
	}
	links, err := os.ReadFile(proc + "net/dev")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			s.add("link", strings.TrimSpace(name))
		}
	}
}

var spawnerName = regexp.MustCompile(`nspawn|machine-spawn|sd-stubinit|sd-getent|sd-launch`)

// processes adds those of spawners.
func (s *state) processes(t *testing.T, h *host.Host) {
	t.Helper()
	lists, err := filepath.Glob(h.Path("/proc/[0-9]*/cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lists {
		args, _ := os.ReadFile(file)
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		line := strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
		name, _, _ := strings.Cut(line, " ")
		if spawnerName.MatchString(name) || spawnerName.Match(comm) {
			s.add("process", filepath.Base(filepath.Dir(file))+" "+line)
		}
	}
}

// unchanged fails when a host does not come back to a snapshot.
func unchanged(t *testing.T, h *host.Host, before string) {
	t.Helper()
	host.Eventually(t, 10*time.Second, func() error {
		after := snapshot(t, h)
		if added := linesOnlyIn(after, before); added != "" {
			return fmt.Errorf("left behind:\n%s", added)
		}
		return nil
	})
}

func linesOnlyIn(a, b string) string {
	have := map[string]int{}
	for line := range strings.Lines(b) {
		have[line]++
	}
	var only strings.Builder
	for line := range strings.Lines(a) {
		if have[line]--; have[line] < 0 {
			only.WriteString(line)
		}
	}
	return only.String()
}
