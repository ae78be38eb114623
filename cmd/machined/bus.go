package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/import1"
	"machined/internal/sys"
	"machined/units"
)

// privateBus is the dbus-daemon that machined starts where there is no system
// bus. It outlives machined, because the spawners of running machines are
// connected to it; the next machined finds it by its socket and its record. It
// is stopped when machined ends in good order and no machine is left.
type privateBus struct {
	dir string
}

type busRecord struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"`
}

func (b privateBus) address() string { return "unix:path=" + filepath.Join(b.dir, "bus") }

func (b privateBus) recordPath() string { return filepath.Join(b.dir, "bus.json") }

// process is the bus that an earlier machined started, nil if it is gone.
func (b privateBus) process() *sys.Process {
	var rec busRecord
	data, err := os.ReadFile(b.recordPath())
	if err != nil || json.Unmarshal(data, &rec) != nil {
		return nil
	}
	p, err := sys.OpenProcess(rec.PID)
	if err != nil {
		return nil
	}
	if p.StartTime() != rec.StartTime || !p.Alive() {
		p.Close()
		return nil
	}
	return p
}

// ensure makes the bus answer: it reuses the one that is there, or starts one.
func (b privateBus) ensure(ctx context.Context) error {
	if p := b.process(); p != nil {
		defer p.Close()
		conn, err := dbus.Connect(ctx, b.address())
		if err == nil {
			return conn.Close()
		}
		// It runs and does not answer: start afresh.
		_ = p.Signal(unix.SIGKILL)
		<-p.Exited()
	}
	return b.start()
}

func (b privateBus) start() error {
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		return fmt.Errorf("start private bus: %w (install dbus-daemon, or run where a system bus is)", err)
	}
	if err := b.writeConfig(); err != nil {
		return fmt.Errorf("configure private bus: %w", err)
	}
	if err := os.Remove(filepath.Join(b.dir, "bus")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start private bus: %w", err)
	}
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start private bus: %w", err)
	}
	defer ready.Close()
	logFile, err := os.OpenFile(filepath.Join(b.dir, "bus.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		_ = child.Close()
		return fmt.Errorf("start private bus: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(program, "--config-file="+filepath.Join(b.dir, "bus.conf"), "--nofork", "--nopidfile", "--print-address=3")
	cmd.ExtraFiles = []*os.File{child}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = child.Close()
	if err != nil {
		return fmt.Errorf("start private bus: %w", err)
	}
	p, perr := sys.OpenProcess(cmd.Process.Pid)
	if perr == nil {
		defer p.Close()
		data, _ := json.Marshal(busRecord{PID: p.PID(), StartTime: p.StartTime()})
		perr = os.WriteFile(b.recordPath(), data, 0o644)
	}
	// The address comes when the bus listens; an end without one is a failure.
	line, rerr := bufio.NewReader(ready).ReadString('\n')
	go func() { _ = cmd.Wait() }() // reap it; its end is seen on the connection
	if err := errors.Join(perr, rerr); err != nil || line == "" {
		_ = cmd.Process.Kill()
		text, _ := os.ReadFile(logFile.Name())
		return fmt.Errorf("start private bus: %w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}

// stop ends the bus.
func (b privateBus) stop() {
	p := b.process()
	if p == nil {
		return
	}
	defer p.Close()
	_ = p.Signal(unix.SIGTERM)
	<-p.Exited()
	_ = os.Remove(b.recordPath())
	_ = os.Remove(filepath.Join(b.dir, "bus"))
}

// writeConfig writes the bus's configuration: a system bus with nothing on it
// but what the installed policies of our names allow.
func (b privateBus) writeConfig() error {
	policies := filepath.Join(b.dir, "bus.d")
	if err := os.MkdirAll(policies, 0o755); err != nil {
		return err
	}
	names, err := fs.Glob(units.Policies, "dbus/system.d/*.conf")
	if err != nil {
		return err
	}
	for _, name := range names {
		data, err := units.Policies.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(policies, filepath.Base(name)), data, 0o644); err != nil {
			return err
		}
	}
	services := filepath.Join(b.dir, "bus.services")
	if err := b.writeServices(services); err != nil {
		return err
	}
	conf := fmt.Sprintf(busConfig, b.address(), services, policies)
	return os.WriteFile(filepath.Join(b.dir, "bus.conf"), []byte(conf), 0o644)
}

// writeServices writes the activation file by which the bus starts the transfer
// daemon for the first caller of org.freedesktop.import1: there is no service
// manager to do so.
func (b privateBus) writeServices(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	program := importdPath()
	env, err := exec.LookPath("env")
	if program == "" || err != nil {
		return nil // transfers are not installed
	}
	text := fmt.Sprintf("[D-BUS Service]\nName=%s\nExec=%s DBUS_SYSTEM_BUS_ADDRESS=%s PATH=%s %s\nUser=root\n",
		import1.BusName, env, b.address(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", program)
	return os.WriteFile(filepath.Join(dir, import1.BusName+".service"), []byte(text), 0o644)
}

// importdPath is the transfer daemon beside this program, else the installed
// one, "" when there is none.
func importdPath() string {
	candidates := []string{"/usr/lib/systemd/systemd-importd"}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		candidates = append([]string{filepath.Join(dir, "machine-importd"), filepath.Join(dir, "systemd-importd")}, candidates...)
	}
	for _, path := range candidates {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
        "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
        <type>system</type>
        <listen>%s</listen>
        <auth>EXTERNAL</auth>
        <servicedir>%s</servicedir>
        <policy context="default">
                <allow user="*"/>
                <deny own="*"/>
                <deny send_type="method_call"/>
                <allow send_type="signal"/>
                <allow send_requested_reply="true" send_type="method_return"/>
                <allow send_requested_reply="true" send_type="error"/>
                <allow receive_type="method_call"/>
                <allow receive_type="method_return"/>
                <allow receive_type="error"/>
                <allow receive_type="signal"/>
                <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
                <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
                <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
                <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Peer"/>
        </policy>
        <includedir>%s</includedir>
        <limit name="max_match_rules_per_connection">8192</limit>
        <limit name="max_replies_per_connection">8192</limit>
</busconfig>
`

// haveSystemBus reports whether a system bus is there that lets us have our name.
func haveSystemBus() bool {
	if _, err := os.Stat("/run/dbus/system_bus_socket"); err != nil {
		return false
	}
	for _, dir := range []string{"/etc/dbus-1/system.d", "/usr/share/dbus-1/system.d"} {
		if _, err := os.Stat(filepath.Join(dir, "org.freedesktop.machine1.conf")); err == nil {
			return true
		}
	}
	return false
}
