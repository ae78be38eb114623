package stage

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
)

// LaunchName is how this program is called when it is about to become process 2
// of a machine with a stub init.
const LaunchName = "(sd-launch)"

// launchSpec is what process 2 executes.
type launchSpec struct {
	Programs, Argv0, Args, Env []string
	Name                       string
	Limits                     []Rlimit
}

func (s launchSpec) memfd() (*os.File, error) {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "payload")
	if _, err := f.WriteAt(pack.Marshal(s), 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openLastPID keeps the file by which the next process ID is chosen, while
// /proc/sys can be written to. The IDs after 1 are free: the threads that had
// them ended when the stage executed itself (stageAgain).
func (in *inner) openLastPID() error {
	if !in.plan.PID2 {
		return nil
	}
	fd, err := in.root.open("/proc/sys/kernel/ns_last_pid", unix.O_WRONLY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel without it: process 2 has another number
	}
	in.lastPID = fd
	return err
}

// nextPID makes the next process number 2. It needs rights that are about to go.
func (in *inner) nextPID() error {
	if in.lastPID <= 0 {
		return nil
	}
	spareThreads()
	_, err := unix.Write(in.lastPID, []byte("1"))
	_ = unix.Close(in.lastPID)
	return os.NewSyscallError("write", err)
}

// spareThreads has the runtime keep some threads in stock: one that it made later
// would take the number that is meant for process 2.
func spareThreads() {
	const spare = 4
	var there, done sync.WaitGroup
	leave := make(chan struct{})
	there.Add(spare)
	for range spare {
		done.Go(func() {
			runtime.LockOSThread()
			there.Done()
			<-leave
			runtime.UnlockOSThread()
		})
	}
	there.Wait()
	close(leave)
	done.Wait()
}

// launch starts process 2, which waits until the returned descriptor is closed.
func (in *inner) launch(spec launchSpec) (pid, release int, err error) {
	f, err := spec.memfd()
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var hold [2]int
	if err := unix.Pipe2(hold[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(hold[0])
	_, noTTY := unix.IoctlGetTermios(0, unix.TCGETS)
	files := []uintptr{0, 1, 2}
	for n := range in.plan.ListenFDs {
		files = append(files, uintptr(3+n))
	}
	files = append(files, in.ch.f.Fd(), f.Fd(), uintptr(hold[0]))
	// After a change of user the files of /proc/self are root's otherwise.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return 0, 0, os.NewSyscallError("prctl", err)
	}
	// Beyond the numbers that the child's descriptors are moved to.
	exe, err := unix.FcntlInt(uintptr(in.exe), unix.F_DUPFD_CLOEXEC, 3*len(files)+16)
	if err != nil {
		return 0, 0, os.NewSyscallError("fcntl", err)
	}
	defer unix.Close(exe)
	pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(exe), []string{LaunchName, strconv.Itoa(3 + in.plan.ListenFDs)},
		&syscall.ProcAttr{
			Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Files: files,
			Sys: &syscall.SysProcAttr{Setsid: true, Setctty: noTTY == nil},
		})
	if err != nil {
		return 0, 0, err
	}
	return pid, hold[1], nil
}

// launchMain becomes the payload when the stub init is in place.
func launchMain() int {
	first, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return 1
	}
	for fd := first; fd < first+3; fd++ {
		unix.CloseOnExec(fd)
	}
	ch := &Channel{os.NewFile(uintptr(first), "supervisor")}
	fail := func(err error) int {
		_ = ch.send(message{Step: stepError, Error: err.Error()})
		return 1
	}
	var spec launchSpec
	data, err := io.ReadAll(os.NewFile(uintptr(first+1), "payload"))
	if err == nil {
		err = pack.Unmarshal(data, &spec)
	}
	if err != nil {
		return fail(err)
	}
	var one [1]byte
	for {
		_, err := unix.Read(first+2, one[:])
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fail(os.NewSyscallError("read", err))
		}
	}
	names := map[string]string{}
	for i, p := range spec.Programs {
		names[p] = spec.Argv0[i]
	}
	if err := setLimits(spec.Limits); err != nil {
		return fail(err)
	}
	return fail(tryExec(spec.Programs, func(p string) string { return names[p] }, spec.Args, spec.Env, spec.Name))
}
