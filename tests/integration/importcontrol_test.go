//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// TestImportControl: what all services of systemd offer, of importd: log level and
// target on the bus, and io.systemd.service on its varlink socket.
func TestImportControl(t *testing.T) {
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	const socket = "/run/systemd/io.systemd.Import"
	h.MustRun(t, "machinectl") // stock's machined has its sockets once it runs
	for _, c := range []struct {
		user, script string
		want         string // pattern of the output
		exit         int
		ours         bool // io.systemd.service came with 258
	}{
		{"", "systemctl service-log-level systemd-importd", `^info$`, 0, false},
		{"", "systemctl service-log-level systemd-importd debug; systemctl service-log-level systemd-importd", `^debug$`, 0, false},
		{"", "systemctl service-log-level systemd-importd bogus", `is not a valid log level`, 1, false},
		{"", "busctl get-property org.freedesktop.import1 /org/freedesktop/LogControl1 org.freedesktop.LogControl1 SyslogIdentifier", `^s "systemd-importd"$`, 0, false},
		{"alice", "busctl set-property org.freedesktop.import1 /org/freedesktop/LogControl1 org.freedesktop.LogControl1 LogLevel s info", `(?i)denied|privilege`, 1, false},
		{"", "systemctl service-log-level systemd-importd", `^debug$`, 0, false},
		{"", "systemctl service-log-target systemd-importd null; systemctl service-log-target systemd-importd", `^null$`, 0, false},
		{"", "systemctl service-log-target systemd-importd journal; systemctl service-log-target systemd-importd", `^journal$`, 0, false},
		{"", "systemctl service-log-target systemd-importd bogus", `(?i)invalid`, 1, false},
		{"", "varlinkctl list-methods " + socket, `^io\.systemd\.Import\.Pull$`, 0, false},
		{"", "varlinkctl list-methods " + socket, `^io\.systemd\.service\.Ping$`, 0, true},
		{"", "varlinkctl list-methods /run/systemd/machine/io.systemd.Machine", `^io\.systemd\.Machine\.Register$`, 0, false},
		{"", `for s in ` + socket + ` /run/systemd/machine/io.systemd.Machine /run/systemd/userdb/io.systemd.Machine; do
for i in $(varlinkctl list-interfaces $s | grep -v '^io.systemd$'); do varlinkctl introspect $s $i >/tmp/idl && varlinkctl validate-idl /tmp/idl >/dev/null || echo bad $i; done; done; echo all`, `\Aall\n\z`, 0, false},
		{"alice", "varlinkctl call " + socket + " io.systemd.service.Ping '{}'", `\{\}`, 0, true},
		{"", "varlinkctl call " + socket + ` io.systemd.service.SetLogLevel '{"level":6}' && systemctl service-log-level systemd-importd`, `^info$`, 0, true},
		{"", "varlinkctl call " + socket + ` io.systemd.service.SetLogLevel '{"level":8}'`, `InvalidParameter`, 1, true},
		{"alice", "varlinkctl call " + socket + ` io.systemd.service.SetLogLevel '{"level":7}'`, `PermissionDenied`, 1, true},
		{"", "varlinkctl call " + socket + " io.systemd.service.GetEnvironment '{}'", `INVOCATION_ID=`, 0, true},
		{"alice", "varlinkctl call " + socket + " io.systemd.service.GetEnvironment '{}'", `PermissionDenied`, 1, true},
	} {
		if c.ours && h.Impl == host.Stock {
			continue
		}
		t.Run(strings.TrimSpace(c.user+" "+c.script), func(t *testing.T) {
			run := h.Try
			if c.user != "" {
				run = func(argv ...string) host.Result { return h.TryAs(c.user, argv...) }
			}
			r := run("bash", "-c", c.script)
			if r.Exit != c.exit {
				t.Errorf("%v", r)
			}
			match(t, r.Output(), c.want)
		})
	}
	// The level counts: what it leaves out is not written.
	if h.Impl == host.Stock {
		return
	}
	log := func() string {
		h.Shell(t, "tar -cf /tmp/a.tar -C /etc passwd; machinectl import-tar /tmp/a.tar a; machinectl remove a; journalctl --sync")
		return h.Shell(t, "journalctl -b -u systemd-importd -o cat --no-pager")
	}
	match(t, log(), `Operation completed successfully\.`, `Transfer ended image=a result=done`)
	h.MustRun(t, "systemctl", "service-log-level", "systemd-importd", "err")
	before := log()
	if after := log(); after != before {
		t.Errorf("the level is err, and the journal has\n%s", linesOnlyIn(after, before))
	}
}
