//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// volumeScript is a storage provider, and the runner of a virtual machine that
// takes volumes; it prints what both are asked, and what is in the volume's file.
const volumeScript = `import array, json, os, socket, subprocess
def listen(path):
    s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(8); return s
def read(c):
    data, fds = b"", array.array("i")
    while not data.endswith(b"\0"):
        part, control, _, _ = c.recvmsg(65536, socket.CMSG_SPACE(64))
        if not part: return None, []
        data += part
        for level, kind, value in control: fds.frombytes(value)
    return json.loads(data[:-1]), list(fds)
def serve(s, f):
    if os.fork() == 0:
        while True:
            c, _ = s.accept()
            m, fds = read(c)
            if m is None: continue # stock's clients may look first
            reply, out = f(m["method"], m["parameters"], fds)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", out))] if out else []
            c.sendmsg([json.dumps(reply).encode() + b"\0"], rights); c.close()
def provider(method, p, fds):
    print("provider", method, json.dumps(p, sort_keys=True), flush=True)
    if p["name"] == "none": return {"error": "io.systemd.StorageProvider.NoSuchVolume", "parameters": {}}, []
    if p["name"] == "forgot": return {"parameters": {"fileDescriptorIndex": 0, "type": "reg", "readOnly": False}}, []
    return {"parameters": {"fileDescriptorIndex": 1, "type": "reg", "readOnly": False}}, [os.open("/dev/null", os.O_RDONLY), os.open("/volume", os.O_RDWR)]
def runner(method, p, fds):
    print("runner", method, json.dumps(p, sort_keys=True), [os.read(f, 99) for f in fds], flush=True)
    for f in fds: os.close(f)
    if p["name"] == "fs:boot": return {"error": "io.systemd.MachineInstance.StorageImmutable", "parameters": {}}, []
    return {"parameters": {}}, []
open("/volume", "w").write("its bytes")
os.makedirs("/run/systemd/io.systemd.StorageProvider", exist_ok=True)
serve(listen("/run/systemd/io.systemd.StorageProvider/fs"), provider)
serve(listen("/run/volumes.sock"), runner)
sleep = subprocess.Popen(["sleep", "1000000"])
m = socket.socket(socket.AF_UNIX); m.connect("/run/systemd/machine/io.systemd.Machine")
m.sendall(json.dumps({"method": "io.systemd.Machine.Register", "parameters": {"name": "vm1", "class": "vm", "leader": sleep.pid, "controlAddress": "/run/volumes.sock"}}).encode() + b"\0")
print("registered", m.recv(65536)[:-1].decode(), flush=True)
sleep.wait()
`

// TestVolumes: a volume goes from its provider to the runner of a machine, and
// errors of both are named in full.
func TestVolumes(t *testing.T) {
	ours(t)
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	h.WriteFile(t, "/volumes.py", volumeScript, 0o644)
	p := h.Start(t, "python3", "/volumes.py")
	p.Expect(t, `registered {"parameters":{}}`)
	h.MustRun(t, "machinectl", "bind-volume", "vm1", "fs:data:virtio-scsi:create=new,size=32M,template=sparse-file")
	p.Expect(t, `provider io.systemd.StorageProvider.Acquire {"allowInteractiveAuthentication": true, "createMode": "new", "createSizeBytes": 33554432, "name": "data", "template": "sparse-file"}`)
	p.Expect(t, `runner io.systemd.MachineInstance.AddStorage {"config": "virtio-scsi", "fileDescriptorIndex": 0, "name": "fs:data"} [b'its bytes']`)
	h.MustRun(t, "machinectl", "--no-ask-password", "bind-volume", "vm1", "fs:data")
	p.Expect(t, `{"allowInteractiveAuthentication": false, "name": "data"}`)
	p.Expect(t, `AddStorage {"fileDescriptorIndex": 0, "name": "fs:data"}`)
	h.MustRun(t, "machinectl", "unbind-volume", "vm1", "fs:data")
	p.Expect(t, `runner io.systemd.MachineInstance.RemoveStorage {"name": "fs:data"} []`)
	h.BusyboxTree(t, "bb")
	h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
	waitMachine(t, h, "bb")
	for _, test := range []struct{ args, want string }{
		{"bind-volume vm1 fs:none", "Failed to acquire storage volume 'fs:none' from provider: io.systemd.StorageProvider.NoSuchVolume\n"},
		{"bind-volume vm1 fs:forgot", "Failed to acquire storage volume 'fs:forgot' from provider: Bad message\n"},
		{"bind-volume vm1 fs:boot", "AddStorage failed for 'fs:boot': io.systemd.MachineInstance.StorageImmutable\n"},
		{"unbind-volume vm1 fs:boot", "RemoveStorage failed for 'fs:boot': io.systemd.MachineInstance.StorageImmutable\n"},
		{"bind-volume vm1 nfs:x", "Failed to acquire storage volume 'nfs:x' from provider: No such file or directory\n"},
		{"bind-volume vm1 ../fs:x", "Failed to parse bind-volume argument '../fs:x': Invalid argument\n"},
		{"bind-volume bb fs:data", "Machine 'bb' does not expose a varlink control socket.\n"},
		{"unbind-volume vm1 fs", "Invalid unbind-volume name 'fs', expected '<provider>:<volume>'.\n"},
		{"bind-volume nope fs:data", "nope"},
		{"bind-volume -H localhost vm1 fs:data", ""},
		{"bind-volume vm1", "Too few arguments.\n"},
	} {
		if r := h.Try(append([]string{"machinectl"}, strings.Fields(test.args)...)...); r.Exit != 1 || !strings.Contains(r.Stderr, test.want) {
			t.Errorf("want %q: %v", test.want, r)
		}
	}
	h.MustRun(t, "machinectl", "terminate", "bb")
	h.MustRun(t, "machinectl", "kill", "-s", "KILL", "--kill-whom=leader", "vm1")
	waitGone(t, h)
}
