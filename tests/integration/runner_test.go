//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// runnerScript is the runner of a virtual machine: it registers one by varlink,
// with its own control address, and prints what it is told there.
const runnerScript = `import json, os, socket, subprocess, sys
path = "/run/runner.sock"
s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(8)
sleep = subprocess.Popen(["sleep", "1000000"])
m = socket.socket(socket.AF_UNIX); m.connect("/run/systemd/machine/io.systemd.Machine")
m.sendall(json.dumps({"method": "io.systemd.Machine.Register", "parameters": {"name": "vm1", "class": "vm", "service": "test-vmspawn", "leader": sleep.pid,
    "controlAddress": path, "vSockCid": 77, "sshAddress": "vsock/77", "sshPrivateKeyPath": "/run/key", "allocateUnit": True}}).encode() + b"\0")
print("registered", m.recv(65536)[:-1].decode(), flush=True)
while True:
    c, _ = s.accept()
    data = b""
    while not data.endswith(b"\0"): data += c.recv(65536)
    method = json.loads(data[:-1])["method"]
    print("told", method, flush=True)
    if method.endswith(".Resume"): c.sendall(b'{"error":"io.systemd.MachineInstance.NotSupported","parameters":{}}\0')
    else: c.sendall(b'{"parameters":{}}\0')
    c.close()
    if method.endswith(".Terminate"): sleep.kill(); sleep.wait(); break
`

// TestRunner: the verbs that a runner of virtual machines does itself go to it.
func TestRunner(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.WriteFile(t, "/runner.py", runnerScript, 0o644)
		p := h.Start(t, "python3", "/runner.py")
		p.Expect(t, `registered {"parameters":{}}`)
		h.MustRun(t, "machinectl", "list") // and with it the scope is there
		for verb, method := range map[string]string{"poweroff": "PowerOff", "stop": "PowerOff", "reboot": "Reboot", "restart": "Reboot", "pause": "Pause"} {
			h.MustRun(t, "machinectl", verb, "vm1")
			p.Expect(t, "told io.systemd.MachineInstance."+method+"\n")
		}
		if r := h.Try("machinectl", "resume", "vm1"); r.Exit != 1 || !strings.Contains(r.Stderr, "NotSupported") {
			t.Errorf("refused by the runner: %v", r)
		}
		show := h.MustRun(t, "machinectl", "show", "vm1")
		match(t, show, `^VSockCID=77$`, `^SSHAddress=vsock/77$`, `^SSHPrivateKeyPath=/run/key$`, `^Class=vm$`)
		match(t, h.MustRun(t, "cat", "/run/systemd/machines/vm1"), `^CONTROL_ADDRESS=/run/runner.sock$`, `^VSOCK_CID=77$`)
		h.RestartDaemon(t)
		h.MustRun(t, "machinectl", "terminate", "vm1")
		p.Expect(t, "told io.systemd.MachineInstance.Terminate\n")
		waitGone(t, h)
		h.BusyboxTree(t, "bb")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		if r := h.Try("machinectl", "pause", "bb"); r.Exit != 1 || !strings.Contains(r.Stderr, "no control address") {
			t.Errorf("pause of a container: %v", r)
		}
		host.Eventually(t, 5*time.Second, func() error { return exitError(h.Try("machinectl", "show", "bb")) })
	})
}
