package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

// machineStatus is what the status of a machine shows.
type machineStatus struct {
	Name, Service, Class, Root, Unit, Subgroup string
	ID                                         []byte
	Timestamp                                  uint64
	Leader, Supervisor, UID                    uint32
	LeaderName, SupervisorName                 string
	Interfaces                                 []string
	Addresses                                  []string
	OS                                         string
	Shift                                      uint32
	Tree                                       *cli.CgroupNode
}

func runStatus(a *app, ctx context.Context, names []string) error {
	for i, name := range names {
		object, err := a.machineObject(ctx, name)
		if err != nil {
			return err
		}
		all, err := a.bus.Properties(ctx, object)
		if err != nil {
			return cli.Because("Could not get properties", err)
		}
		if i > 0 {
			fmt.Fprintln(a.page())
		}
		status := a.gather(ctx, object, all)
		width := 0
		if a.term.OutTTY && !a.opts.full && !a.page().Paged {
			width = a.term.Width
		}
		status.write(a.page(), a.term, width, time.Now())
		a.writeJournal(ctx, object, status)
	}
	return nil
}

func value[T any](all map[string]godbus.Variant, name string) T {
	v, _ := all[name].Value().(T)
	return v
}

func (a *app) gather(ctx context.Context, object cli.Object, all map[string]godbus.Variant) *machineStatus {
	s := &machineStatus{
		Name: value[string](all, "Name"), Service: value[string](all, "Service"), Class: value[string](all, "Class"),
		Root: value[string](all, "RootDirectory"), Unit: value[string](all, "Unit"), Subgroup: value[string](all, "Subgroup"),
		ID: value[[]byte](all, "Id"), Timestamp: value[uint64](all, "Timestamp"), Leader: value[uint32](all, "Leader"),
		Supervisor: value[uint32](all, "Supervisor"), UID: value[uint32](all, "UID"),
	}
	local := a.opts.target.Local()
	// What may not be seen is left out: nobody wants to be asked for a password
	// for a look.
	quiet := &cli.Bus{Conn: a.bus.Conn}
	netifs := value[[]int32](all, "NetworkInterfaces")
	if local {
		s.LeaderName, s.SupervisorName = processName(s.Leader), processName(s.Supervisor)
		for _, index := range netifs {
			name := "%" + decimal(index)
			if netif, err := net.InterfaceByIndex(int(index)); err == nil {
				name = netif.Name
			}
			s.Interfaces = append(s.Interfaces, name)
		}
	}
	var addresses []address
	if quiet.Call(ctx, object, "GetAddresses", nil, &addresses) == nil {
		for _, one := range addresses {
			text := one.String()
			if one.Family == 10 && len(netifs) == 1 {
				text += "%" + decimal(netifs[0])
			}
			s.Addresses = append(s.Addresses, text)
		}
	}
	var release map[string]string
	if quiet.Call(ctx, object, "GetOSRelease", nil, &release) == nil {
		s.OS = osName(release)
	}
	// Not every machine has one; then there is nothing to show.
	_ = quiet.Call(ctx, object, "GetUIDShift", nil, &s.Shift)
	if s.Unit != "" {
		// A unit without processes has no tree.
		s.Tree, _ = a.bus.UnitTree(ctx, s.Unit, s.Leader, local)
		s.Tree = s.Tree.Find(s.Subgroup) // the rest of the unit is not the machine's
	}
	return s
}

func osName(release map[string]string) string {
	for _, key := range []string{"PRETTY_NAME", "NAME"} {
		if name := release[key]; name != "" {
			return cli.Printable(name, false)
		}
	}
	return ""
}

func processName(pid uint32) string {
	if pid == 0 {
		return ""
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (s *machineStatus) write(w io.Writer, t *cli.Terminal, width int, now time.Time) {
	line := func(label, text string) { fmt.Fprintf(w, "\t%8s: %s\n", label, text) }
	title := s.Name
	if len(s.ID) > 0 {
		title += "(" + hex.EncodeToString(s.ID) + ")"
	}
	fmt.Fprintln(w, title)
	if since := cli.FormatTime(s.Timestamp); since != "" {
		line("Since", since+"; "+cli.FormatRelative(s.Timestamp, now))
	}
	process := func(label string, pid uint32, name string) {
		if pid == 0 {
			return
		}
		if name != "" {
			name = " (" + cli.Printable(name, false) + ")"
		}
		line(label, decimal(pid)+name)
	}
	process("Leader", s.Leader, s.LeaderName)
	if s.Supervisor != s.Leader {
		process("Superv.", s.Supervisor, s.SupervisorName)
	}
	switch {
	case s.Service != "" && s.Class != "":
		line("Service", s.Service+"; class "+s.Class)
	case s.Service != "":
		line("Service", s.Service)
	case s.Class != "":
		line("Class", s.Class)
	}
	if s.UID != 0 && s.UID != ^uint32(0) {
		line("UID", decimal(s.UID))
	}
	if s.Root != "" {
		line("Root", cli.Printable(s.Root, false))
	}
	if len(s.Interfaces) > 0 {
		line("Iface", strings.Join(s.Interfaces, " "))
	}
	if len(s.Addresses) > 0 {
		line("Address", strings.Join(s.Addresses, "\n\t          "))
	}
	if s.OS != "" {
		line("OS", s.OS)
	}
	if s.Shift != 0 {
		fmt.Fprintf(w, "  UID Shift: %d\n", s.Shift)
	}
	if s.Unit != "" {
		line("Unit", s.Unit)
		if s.Subgroup != "" {
			line("Subgroup", s.Subgroup)
		}
		if s.Tree != nil {
			if width > 0 {
				// The tree starts 18 columns in.
				width = max(width-18, 1)
			}
			s.Tree.Write(w, t, "\t\t  ", width)
		}
	}
}

// writeJournal shows the last lines that the machine's unit wrote: from the
// journal, or from the daemon where it keeps the console's output itself.
func (a *app) writeJournal(ctx context.Context, object cli.Object, s *machineStatus) {
	if s.Unit == "" || a.opts.lines == 0 {
		return
	}
	var text []byte
	if a.opts.target.Local() {
		text = a.journal(ctx, s)
	}
	if len(text) == 0 {
		own := cli.Object{Service: object.Service, Path: object.Path, Interface: machine1.OwnMachineInterface}
		var lines []string
		if a.bus.Call(ctx, own, "GetLog", []any{a.opts.lines}, &lines) == nil && len(lines) > 0 {
			for _, line := range lines {
				text = append(text, cli.Printable(line, false)+"\n"...)
			}
		}
	}
	if len(text) > 0 {
		fmt.Fprintf(a.page(), "\n%s", text)
	}
}

func (a *app) journal(ctx context.Context, s *machineStatus) []byte {
	path, err := exec.LookPath("journalctl")
	if err != nil {
		return nil
	}
	args := []string{"--no-pager", "--quiet"}
	// By the run of the unit.
	if id, err := a.bus.UnitProperty(ctx, s.Unit, "Unit", "InvocationID"); err == nil {
		if raw, ok := id.([]byte); ok && len(raw) > 0 {
			text := hex.EncodeToString(raw)
			args = append(args, "_SYSTEMD_INVOCATION_ID="+text, "+", "INVOCATION_ID="+text)
		}
	}
	if len(args) == 2 {
		args = append(args, "--unit="+s.Unit)
	}
	lines := linesSince(ctx, path, append([]string{"--lines=" + decimal(a.opts.lines)}, args...), s.Timestamp)
	if lines == 0 {
		return nil
	}
	args = append([]string{"--lines=" + strconv.Itoa(lines), "--output=" + a.opts.output}, args...)
	columns := a.term.Width
	if a.opts.full || a.page().Paged || !a.term.OutTTY {
		args = append([]string{"--full"}, args...)
	} else {
		args = append([]string{"--no-full"}, args...)
	}
	journal := exec.CommandContext(ctx, path, args...)
	journal.Env = append(os.Environ(), "COLUMNS="+strconv.Itoa(columns))
	if a.term.Color {
		journal.Env = append(journal.Env, "SYSTEMD_COLORS=1")
	}
	var text bytes.Buffer
	journal.Stdout = &text
	// Without the right to read the journal there is nothing to show.
	_ = journal.Run()
	return text.Bytes()
}

// linesSince counts the entries, of those that journalctl shows with args, that
// are not older than since, in µs of the clock. What the unit did before is not
// the machine's; --since with --lines would mean the first lines to older
// journalctl.
func linesSince(ctx context.Context, journalctl string, args []string, since uint64) int {
	out, err := exec.CommandContext(ctx, journalctl, append([]string{"--output=json", "--output-fields=PRIORITY"}, args...)...).Output()
	if err != nil {
		return 0
	}
	n := 0
	for line := range bytes.Lines(out) {
		var entry struct {
			Time string `json:"__REALTIME_TIMESTAMP"`
		}
		if json.Unmarshal(line, &entry) != nil {
			continue
		}
		if usec, err := strconv.ParseUint(entry.Time, 10, 64); err == nil && usec >= since {
			n++
		}
	}
	return n
}
