package seccomp

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// offsets in struct seccomp_data (seccomp(2)).
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

type kind uint8

const (
	kindErrno kind = iota
	kindAllow
	kindSocket // allow, but audit sockets
	kindOpen   // allow, but synchronous files
	kindOpenat
	kindIoctl // allow, but input for other users of a terminal
)

// action is what becomes of a call.
type action struct {
	kind  kind
	errno uint16
}

var (
	actAllow  = action{kind: kindAllow}
	actSocket = action{kind: kindSocket}
	actOpen   = action{kind: kindOpen}
	actOpenat = action{kind: kindOpenat}
	actIoctl  = action{kind: kindIoctl}
)

func actErrno(e unix.Errno) action { return action{kindErrno, uint16(e)} }

// span is a run of call numbers, from one up to the next span.
type span struct {
	from uint32
	act  action
}

// assemble writes the filter: the ABI first, then a binary search for the number.
func assemble(abis []abi, judge func(name string) action) ([]unix.SockFilter, error) {
	if len(abis) == 0 {
		return nil, errors.New("write system call filter: no table for this architecture")
	}
	prog := []unix.SockFilter{load(offArch)}
	for _, a := range abis {
		body := []unix.SockFilter{load(offNr)}
		spans := a.spans(judge)
		if a.limit != 0 {
			for i, s := range spans {
				if s.from >= a.limit {
					spans = spans[:i]
					break
				}
			}
			spans = append(spans, span{a.limit, actErrno(unix.ENOSYS)})
		}
		body = append(body, tree(spans)...)
		prog = append(prog, jump(unix.BPF_JEQ, a.audit, 1, 0), always(uint32(len(body))))
		prog = append(prog, body...)
	}
	// An ABI that this host's kernel does not have, as far as we know.
	prog = append(prog, ret(retErrno(unix.ENOSYS)))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, errors.New("write system call filter: too long")
	}
	return prog, nil
}

// tree searches spans with one comparison per level; every path returns.
func tree(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		return leaf(spans[0].act)
	}
	mid := len(spans) / 2
	low, high := tree(spans[:mid]), tree(spans[mid:])
	var out []unix.SockFilter
	if len(low) <= 255 {
		out = append(out, jump(unix.BPF_JGE, spans[mid].from, uint8(len(low)), 0))
	} else {
		out = append(out, jump(unix.BPF_JGE, spans[mid].from, 0, 1), always(uint32(len(low))))
	}
	out = append(out, low...)
	return append(out, high...)
}

func leaf(a action) []unix.SockFilter {
	switch a.kind {
	case kindAllow:
		return []unix.SockFilter{ret(unix.SECCOMP_RET_ALLOW)}
	case kindSocket:
		// Audit does not work in machines, and programs that find a socket for
		// it believe that it does.
		return []unix.SockFilter{
			load(argument(0)), jump(unix.BPF_JEQ, unix.AF_NETLINK, 0, 3),
			load(argument(2)), jump(unix.BPF_JEQ, unix.NETLINK_AUDIT, 0, 1),
			ret(retErrno(unix.EAFNOSUPPORT)), ret(unix.SECCOMP_RET_ALLOW),
		}
	case kindOpen:
		return openLeaf(1)
	case kindOpenat:
		return openLeaf(2)
	case kindIoctl:
		// The kernel, too, reads no more than the low half of the request.
		return []unix.SockFilter{
			load(argument(1)), jump(unix.BPF_JEQ, unix.TIOCSTI, 1, 0), jump(unix.BPF_JEQ, unix.TIOCLINUX, 0, 1),
			ret(retErrno(unix.EPERM)), ret(unix.SECCOMP_RET_ALLOW),
		}
	default:
		return []unix.SockFilter{ret(unix.SECCOMP_RET_ERRNO | uint32(a.errno))}
	}
}

// openLeaf refuses O_SYNC and O_DSYNC; the former includes the latter's bit.
func openLeaf(flags int) []unix.SockFilter {
	return []unix.SockFilter{
		load(argument(flags)), jump(unix.BPF_JSET, unix.O_DSYNC, 0, 1),
		ret(retErrno(unix.EINVAL)), ret(unix.SECCOMP_RET_ALLOW),
	}
}

// argument returns the offset of the low 32 bits of an argument.
func argument(i int) uint32 {
	off := uint32(offArgs + 8*i)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		off += 4
	}
	return off
}

func retErrno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }

func jump(cond uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | cond | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func always(n uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: n}
}
