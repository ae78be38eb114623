// Package sysctlguard keeps the processes of a cgroup from changing settings of
// /proc/sys that are not their own, in whatever procfs they find them.
//
// The kernel asks a small program about each write (BPF_PROG_TYPE_CGROUP_SYSCTL, in
// the kernel's Documentation/bpf/prog_cgroup_sysctl.rst). It hangs on the cgroup,
// and goes with it: no process has to live and no descriptor to stay open for it.
//
// It is no filter of system calls: a file can be opened, and is refused when it is
// written to. What procfs has outside of /proc/sys it does not know.
package sysctlguard

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Own says which namespaces those processes have for themselves: settings of these
// may be changed.
type Own struct{ Network, IPC, UTS, PID, Users bool }

// names are the settings that belong to these namespaces (namespaces(7) and the
// kernel's documentation of sysctls), relative to /proc/sys: what begins with one of
// them, or a whole name where it ends with a zero byte.
func (o Own) names() []string {
	var names []string
	for _, n := range []struct {
		own   bool
		names []string
	}{
		{o.Network, []string{"net/"}},
		{o.IPC, []string{"kernel/shm", "kernel/sem", "kernel/msg", "fs/mqueue/"}},
		{o.UTS, []string{"kernel/hostname\x00", "kernel/domainname\x00"}},
		{o.PID, []string{"kernel/ns_last_pid\x00"}},
		{o.Users, []string{"user/"}},
	} {
		if n.own {
			names = append(names, n.names...)
		}
	}
	return names
}

// Load gives the kernel the program for one choice. It fails with EPERM where bpf(2)
// is not allowed, as in a machine, and with EINVAL where the kernel has no such programs
// (before Linux 5.2, or without CONFIG_CGROUP_BPF).
func Load(own Own) (*os.File, error) {
	code := assemble(own.names())
	license, name := []byte("GPL\x00"), [unix.BPF_OBJ_NAME_LEN]byte{}
	copy(name[:], "machine_sysctl")
	attr := struct {
		kind, count        uint32
		code, license      uint64
		logLevel, logSize  uint32
		logBuffer          uint64
		version, flags     uint32
		name               [unix.BPF_OBJ_NAME_LEN]byte
		interfaceIndex, at uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_SYSCTL, count: uint32(len(code)), at: unix.BPF_CGROUP_SYSCTL, name: name,
		code: address(unsafe.Pointer(&code[0])), license: address(unsafe.Pointer(&license[0])),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, err
	}
	return os.NewFile(fd, "sysctl guard"), nil
}

// Attach has the program asked about whatever the processes of a cgroup and of those
// below it write, beside such programs of others. The program can be closed then.
func Attach(program, cgroup *os.File) error {
	attr := struct{ cgroup, program, kind, flags uint32 }{
		uint32(cgroup.Fd()), uint32(program.Fd()), unix.BPF_CGROUP_SYSCTL, unix.BPF_F_ALLOW_MULTI,
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(cgroup)
	runtime.KeepAlive(program)
	return err
}

func address(p unsafe.Pointer) uint64 { return uint64(uintptr(p)) }

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
		switch errno {
		case 0:
			return r, nil
		case unix.EINTR, unix.EAGAIN: // the verifier was interrupted by a signal
			continue
		}
		return 0, os.NewSyscallError("bpf", errno)
	}
}

// instruction is struct bpf_insn of <linux/bpf.h>.
type instruction struct {
	op, registers uint8
	offset        int16
	value         int32
}

// Operations, in the names of <linux/bpf.h>.
const (
	load     = unix.BPF_LDX | unix.BPF_MEM
	loadLong = unix.BPF_LD | unix.BPF_IMM | unix.BPF_DW // takes two instructions
	set      = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	setFrom  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	add      = unix.BPF_ALU64 | unix.BPF_ADD | unix.BPF_K
	or       = unix.BPF_ALU64 | unix.BPF_OR | unix.BPF_X
	differ   = unix.BPF_ALU64 | unix.BPF_XOR | unix.BPF_X // by which bits
	differBy = unix.BPF_ALU64 | unix.BPF_XOR | unix.BPF_K
	ifZero   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	call     = unix.BPF_JMP | unix.BPF_CALL
	exit     = unix.BPF_JMP | unix.BPF_EXIT
)

const (
	frame      = 10  // register of the stack's end
	getName    = 101 // BPF_FUNC_sysctl_get_name
	nameLength = 24  // of the stack; longer than each of the names, and a multiple of 8
)

// registers encodes the two operands, whose order follows the machine's.
func registers(to, from uint8) uint8 {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return to | from<<4
	}
	return to<<4 | from
}

// assemble makes the program. Its argument, in register 1, is a struct bpf_sysctl, the
// first word of which is not zero for a write; it answers 1 to let it through, 0 for EPERM.
//
// What a name differs by is collected before it is looked at: the kernel's verifier, whose
// time is a machine's start, follows each branch.
func assemble(names []string) []instruction {
	code := []instruction{
		{op: load | unix.BPF_W, registers: registers(5, 1)},
		{op: ifZero, registers: registers(5, 0)},
		{op: setFrom, registers: registers(2, frame)},
		{op: add, registers: registers(2, 0), value: -nameLength},
		{op: set, registers: registers(3, 0), value: nameLength},
		{op: set, registers: registers(4, 0)},
		{op: call, value: getName},
	}
	jumps := []int{1}
	for _, name := range names {
		code = append(code, compare(name)...)
		jumps = append(jumps, len(code))
		code = append(code, instruction{op: ifZero, registers: registers(1, 0)})
	}
	code = append(code, instruction{op: set, value: 0}, instruction{op: exit})
	for _, at := range jumps {
		code[at].offset = int16(len(code) - at - 1)
	}
	return append(code, instruction{op: set, value: 1}, instruction{op: exit})
}

// compare leaves in register 1 what the name on the stack differs by.
func compare(name string) []instruction {
	var code []instruction
	for at := 0; at < len(name); {
		rest, to := []byte(name[at:]), uint8(1)
		if at > 0 {
			to = 2
		}
		from := instruction{registers: registers(to, frame), offset: int16(at - nameLength)}
		by := instruction{op: differBy, registers: registers(to, 0)}
		switch {
		case len(rest) >= 8:
			from.op = load | unix.BPF_DW
			long := binary.NativeEndian.Uint64(rest)
			code = append(code,
				instruction{op: loadLong, registers: registers(3, 0), value: int32(uint32(long))},
				instruction{value: int32(uint32(long >> 32))},
			)
			by = instruction{op: differ, registers: registers(to, 3)}
			at += 8
		case len(rest) >= 4:
			from.op = load | unix.BPF_W
			by.value = int32(binary.NativeEndian.Uint32(rest))
			at += 4
		case len(rest) >= 2:
			from.op = load | unix.BPF_H
			by.value = int32(binary.NativeEndian.Uint16(rest))
			at += 2
		default:
			from.op = load | unix.BPF_B
			by.value = int32(rest[0])
			at++
		}
		code = append(code, from, by)
		if to != 1 {
			code = append(code, instruction{op: or, registers: registers(1, to)})
		}
	}
	return code
}
