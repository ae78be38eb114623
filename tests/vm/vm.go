package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"machined/tests/host"
)

// bootTimeout bounds the time from the start of QEMU to the agent's first word.
// Emulation on a busy machine is slow.
const bootTimeout = 5 * time.Minute

// VM is a booted virtual machine. Its methods are safe for concurrent use.
type VM struct {
	Suite host.Suite
	Impl  host.Impl

	scratch *host.Scratch
	qemu    *exec.Cmd
	conn    net.Conn
	died    chan struct{} // closed when the agent can't be reached any more

	mu      sync.Mutex
	next    int64
	waiting map[int64]chan reply
}

// Start boots a virtual machine with the product installed, or with stock's programs
// alone. It prepares what the cache does not have.
func Start(ctx context.Context, suite host.Suite, impl host.Impl) (*VM, error) {
	image, kernel, initrd, err := host.VMImage(ctx, suite)
	if err != nil {
		return nil, err
	}
	s, err := host.NewScratch(fmt.Sprintf("vm%d", os.Getpid()))
	if err != nil {
		return nil, err
	}
	v := &VM{Suite: suite, Impl: impl, scratch: s, waiting: map[int64]chan reply{}, died: make(chan struct{})}
	if err := v.boot(ctx, image, kernel, initrd); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *VM) boot(ctx context.Context, image, kernel, initrd string) error {
	disk := filepath.Join(v.scratch.Dir, "disk")
	if err := v.furnish(ctx, image, disk); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	listener, err := net.Listen("unix", filepath.Join(v.scratch.Dir, "agent"))
	if err != nil {
		return err
	}
	defer listener.Close()
	log, err := os.Create(filepath.Join(v.scratch.Dir, "qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	accel := os.Getenv("MACHINED_TEST_ACCEL")
	if accel == "" {
		accel = "tcg"
	}
	// One processor: with more, emulation runs into the kernel's patching of its own code.
	v.qemu = exec.Command("qemu-system-x86_64", "-accel", accel, "-cpu", "max", "-smp", "1", "-m", "1536",
		"-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 systemd.show_status=no",
		"-serial", "file:"+filepath.Join(v.scratch.Dir, "console"),
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+disk,
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path="+listener.Addr().String(), "-device", "virtserialport,chardev=agent,name="+portName)
	v.qemu.Stdout, v.qemu.Stderr = log, log
	if err := v.scratch.Start(v.qemu); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = v.qemu.Wait()
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	go func() {
		<-ended
		listener.Close()
	}()
	if v.conn, err = listener.Accept(); err != nil {
		return v.because(fmt.Errorf("start QEMU: %w", err))
	}
	in := json.NewDecoder(v.conn)
	if deadline, ok := ctx.Deadline(); ok {
		_ = v.conn.SetReadDeadline(deadline)
	}
	if err := in.Decode(&reply{}); err != nil {
		return v.because(fmt.Errorf("wait for the machine to boot: %w", err))
	}
	_ = v.conn.SetReadDeadline(time.Time{})
	go v.receive(in)
	// Not "running" but "degraded" still is a machine to look at: the suite tells.
	if r := v.Run(ctx, "systemctl", "is-system-running", "--wait"); r.Stdout == "" {
		return v.because(fmt.Errorf("wait for the end of booting: %v", r))
	}
	return nil
}

// furnish makes the machine's disk: a copy of the image with the agent and the product.
func (v *VM) furnish(ctx context.Context, image, disk string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", image, disk).CombinedOutput(); err != nil {
		return fmt.Errorf("copy image: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	root := filepath.Join(v.scratch.Dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	unit := filepath.Join(v.scratch.Dir, "agent.service")
	if err := os.WriteFile(unit, []byte(agentUnit), 0o644); err != nil {
		return err
	}
	script := `mount -o loop "$1" "$2"
install -D -m 755 "$3" "$2` + agentPath + `"
install -D -m 644 "$4" "$2/etc/systemd/system/test-agent.service"
mkdir -p "$2/etc/systemd/system/sysinit.target.wants"
ln -sf /dev/null "$2/etc/systemd/system/systemd-sysupdate.timer"
ln -s ../test-agent.service "$2/etc/systemd/system/sysinit.target.wants/"
if [ "$5" ]; then make -s -C "$5" install DESTDIR="$2" PREFIX=/usr BIN="$6"; fi
umount "$2"`
	top, bin := "", ""
	if v.Impl == host.Ours {
		if top, bin, err = host.Source(); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "furnish", disk, root, self, unit, top, bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("furnish the machine: %w\n%s", err, out)
	}
	return nil
}

// because adds what QEMU and the machine's kernel have said.
func (v *VM) because(err error) error {
	for _, name := range []string{"qemu.log", "console"} {
		if data, _ := os.ReadFile(filepath.Join(v.scratch.Dir, name)); len(data) > 0 {
			err = fmt.Errorf("%w\n%s:\n%s", err, name, data[max(0, len(data)-8000):])
		}
	}
	return err
}

// receive hands replies to those who wait for them.
func (v *VM) receive(in *json.Decoder) {
	defer close(v.died)
	for {
		var r reply
		if in.Decode(&r) != nil {
			return
		}
		v.mu.Lock()
		c := v.waiting[r.ID]
		delete(v.waiting, r.ID)
		v.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
}

// Close ends the machine and removes everything of it.
func (v *VM) Close() error {
	if v.conn != nil {
		v.conn.Close()
	}
	return v.scratch.Close()
}

// Run runs a command in the machine as root, until it ends or ctx does.
func (v *VM) Run(ctx context.Context, argv ...string) host.Result {
	return v.RunInput(ctx, nil, argv...)
}

// RunInput is Run with standard input.
func (v *VM) RunInput(ctx context.Context, input []byte, argv ...string) host.Result {
	res := host.Result{Argv: argv, Exit: -1}
	timeout := bootTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	c := make(chan reply, 1)
	v.mu.Lock()
	v.next++
	id := v.next
	v.waiting[id] = c
	line, err := json.Marshal(request{ID: id, Argv: argv, Input: input, Timeout: timeout})
	if err == nil {
		_, err = v.conn.Write(append(line, '\n'))
	}
	v.mu.Unlock()
	if err != nil {
		res.Err = err
		return res
	}
	select {
	case r := <-c:
		res.Stdout, res.Stderr, res.Exit, res.Took = r.Stdout, r.Stderr, r.Exit, r.Took
		if r.Err != "" {
			res.Err = errors.New(r.Err)
		}
	case <-v.died:
		res.Err = v.because(errors.New("the virtual machine is gone"))
	case <-time.After(timeout + 10*time.Second):
		res.Err = context.DeadlineExceeded
	}
	return res
}

// commandTimeout bounds what tests run.
const commandTimeout = 3 * time.Minute

// Try is Run with the usual time-out, of a script for bash.
func (v *VM) Try(script string) host.Result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return v.Run(ctx, "bash", "-c", script)
}

// Shell runs a script with bash -e and returns its stdout; the test ends if it fails.
func (v *VM) Shell(t testing.TB, script string) string {
	t.Helper()
	r := v.Try("set -e\n" + script)
	if r.Exit != 0 {
		t.Fatal(r)
	}
	return strings.TrimSpace(r.Stdout)
}
