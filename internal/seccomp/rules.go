package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Rules are a filter that somebody else has written, as in the configuration of
// an OCI bundle: the first rule that fits a call decides.
type Rules struct {
	Default Action
	// Architectures are those whose calls are let through to the rules, beside
	// the host's own: X86, X86_64, ARM, ... A call of another kills the thread.
	Architectures []string
	Rules         []Rule
}

// Rule is about calls by name; unknown names are passed over. All the arguments
// must fit.
type Rule struct {
	Names     []string
	Action    Action
	Arguments []Argument
}

// Action is what becomes of a call.
type Action struct {
	Verdict Verdict
	Data    uint16 // errno, or what a tracer is told
}

// Verdict is a kind of action (seccomp(2), SECCOMP_RET_*).
type Verdict uint32

// The verdicts.
const (
	KillProcess Verdict = unix.SECCOMP_RET_KILL_PROCESS
	KillThread  Verdict = unix.SECCOMP_RET_KILL_THREAD
	Trap        Verdict = unix.SECCOMP_RET_TRAP
	Errno       Verdict = unix.SECCOMP_RET_ERRNO
	Trace       Verdict = unix.SECCOMP_RET_TRACE
	Log         Verdict = unix.SECCOMP_RET_LOG
	Allow       Verdict = unix.SECCOMP_RET_ALLOW
)

// Argument compares an argument of a call, all its 64 bits.
type Argument struct {
	Index    int // 0 to 5
	Operator Operator
	Value    uint64
	Mask     uint64 // MaskedEqual: the argument's bits that count
}

// Operator is a comparison of an argument with a value.
type Operator int

// The operators.
const (
	Equal Operator = iota
	NotEqual
	Less
	LessEqual
	Greater
	GreaterEqual
	MaskedEqual
)

// architectures are libseccomp's names for the kernel's (linux/audit.h).
var architectures = map[string]uint32{
	"X86": unix.AUDIT_ARCH_I386, "X86_64": unix.AUDIT_ARCH_X86_64, "X32": unix.AUDIT_ARCH_X86_64,
	"ARM": unix.AUDIT_ARCH_ARM, "AARCH64": unix.AUDIT_ARCH_AARCH64,
	"MIPS": unix.AUDIT_ARCH_MIPS, "MIPS64": unix.AUDIT_ARCH_MIPS64, "MIPS64N32": unix.AUDIT_ARCH_MIPS64N32,
	"MIPSEL": unix.AUDIT_ARCH_MIPSEL, "MIPSEL64": unix.AUDIT_ARCH_MIPSEL64, "MIPSEL64N32": unix.AUDIT_ARCH_MIPSEL64N32,
	"PPC": unix.AUDIT_ARCH_PPC, "PPC64": unix.AUDIT_ARCH_PPC64, "PPC64LE": unix.AUDIT_ARCH_PPC64LE,
	"S390": unix.AUDIT_ARCH_S390, "S390X": unix.AUDIT_ARCH_S390X,
	"PARISC": unix.AUDIT_ARCH_PARISC, "PARISC64": unix.AUDIT_ARCH_PARISC64, "RISCV64": unix.AUDIT_ARCH_RISCV64,
	"LOONGARCH64": unix.AUDIT_ARCH_LOONGARCH64, "M68K": unix.AUDIT_ARCH_M68K, "SH": unix.AUDIT_ARCH_SH, "SHEB": unix.AUDIT_ARCH_SH,
}

// ValidArchitecture tells whether there is an architecture of that name.
func ValidArchitecture(name string) bool { _, ok := architectures[name]; return ok }

// CompileRules returns the filter of rules.
func CompileRules(r Rules) ([]unix.SockFilter, error) {
	if len(abis) == 0 {
		return nil, errors.New("write system call filter: no table for this architecture")
	}
	prog := []unix.SockFilter{load(offArch)}
	for i, a := range abis {
		listed := slices.ContainsFunc(r.Architectures, func(name string) bool { return architectures[name] == a.audit })
		if i > 0 && !listed {
			continue
		}
		body, err := a.rules(r)
		if err != nil {
			return nil, err
		}
		prog = append(prog, jump(unix.BPF_JEQ, a.audit, 1, 0), always(uint32(len(body))))
		prog = append(prog, body...)
	}
	prog = append(prog, ret(uint32(KillThread)))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("write system call filter: %d instructions, at most %d", len(prog), unix.BPF_MAXINSNS)
	}
	return prog, nil
}

func (a Action) encode() uint32 {
	switch a.Verdict {
	case Errno, Trace:
		return uint32(a.Verdict) | uint32(a.Data)
	}
	return uint32(a.Verdict)
}

// rules is the program for calls of one ABI; every path returns.
func (a abi) rules(r Rules) ([]unix.SockFilter, error) {
	numbers := map[string][]uint32{}
	for _, c := range a.calls {
		numbers[c.name] = append(numbers[c.name], c.nr)
	}
	out := []unix.SockFilter{load(offNr)}
	if a.limit != 0 {
		out = append(out, jump(unix.BPF_JGE, a.limit, 0, 1), ret(uint32(KillThread)))
	}
	for _, rule := range r.Rules {
		var conditions []unix.SockFilter
		for _, arg := range rule.Arguments {
			if arg.Index < 0 || arg.Index > 5 {
				return nil, fmt.Errorf("write system call filter: argument %d of 0 to 5", arg.Index)
			}
			conditions = append(conditions, arg.test()...)
		}
		for _, name := range rule.Names {
			for _, nr := range numbers[name] {
				body := resolve(append(slices.Clone(conditions), ret(rule.Action.encode())))
				if len(conditions) > 0 {
					body = append(body, load(offNr)) // for the rules that follow
				}
				if len(body) > 255 {
					return nil, fmt.Errorf("write system call filter: too many conditions for %s", name)
				}
				out = append(out, jump(unix.BPF_JEQ, nr, 0, uint8(len(body))))
				out = append(out, body...)
			}
		}
	}
	return append(out, ret(r.Default.encode())), nil
}

// no and yes are jumps of a condition that resolve fills in: to the end of the
// rule, and to its next condition.
const (
	no  = 0xff
	yes = 0xfe
)

// resolve fills in the jumps of conditions, which a return ends. A marker in Jt
// or Jf counts from the instruction after.
func resolve(prog []unix.SockFilter) []unix.SockFilter {
	next := len(prog) - 1
	for i := len(prog) - 1; i >= 0; i-- {
		if prog[i].Code == markNext {
			next = i
			prog[i] = unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA} // to what follows
			continue
		}
		if prog[i].Code&0x07 != unix.BPF_JMP {
			continue
		}
		for _, to := range []*uint8{&prog[i].Jt, &prog[i].Jf} {
			switch *to {
			case no:
				*to = uint8(len(prog) - i - 1)
			case yes:
				*to = uint8(next - i - 1)
			}
		}
	}
	return prog
}

// markNext stands between conditions.
const markNext = 0xffff

// test compares both halves of an argument, the high one first.
func (a Argument) test() []unix.SockFilter {
	low := argument(a.Index)
	high := low + 4
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		high = low - 4
	}
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	var t []unix.SockFilter
	switch a.Operator {
	case Equal:
		t = []unix.SockFilter{load(high), jump(unix.BPF_JEQ, hi, 0, no), load(low), jump(unix.BPF_JEQ, lo, yes, no)}
	case NotEqual:
		t = []unix.SockFilter{load(high), jump(unix.BPF_JEQ, hi, 0, yes), load(low), jump(unix.BPF_JEQ, lo, no, yes)}
	case MaskedEqual:
		and := func(mask uint32) unix.SockFilter {
			return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
		}
		t = []unix.SockFilter{
			load(high), and(uint32(a.Mask >> 32)), jump(unix.BPF_JEQ, hi, 0, no),
			load(low), and(uint32(a.Mask)), jump(unix.BPF_JEQ, lo, yes, no),
		}
	case Greater, GreaterEqual:
		last := jump(unix.BPF_JGT, lo, yes, no)
		if a.Operator == GreaterEqual {
			last = jump(unix.BPF_JGE, lo, yes, no)
		}
		t = []unix.SockFilter{load(high), jump(unix.BPF_JGT, hi, yes, 0), jump(unix.BPF_JEQ, hi, 0, no), load(low), last}
	case Less, LessEqual:
		last := jump(unix.BPF_JGE, lo, no, yes)
		if a.Operator == LessEqual {
			last = jump(unix.BPF_JGT, lo, no, yes)
		}
		t = []unix.SockFilter{load(high), jump(unix.BPF_JGT, hi, no, 0), jump(unix.BPF_JEQ, hi, 0, yes), load(low), last}
	}
	return append(t, unix.SockFilter{Code: markNext})
}
