package seccomp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// decide runs rules for one call of the host's own ABI.
func decide(t *testing.T, r Rules, name string, args ...uint64) uint32 {
	t.Helper()
	prog, err := CompileRules(r)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]bpf.RawInstruction, len(prog))
	for i, f := range prog {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	ins, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("filter has instructions that the interpreter does not know")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	nr := uint32(0xffff)
	for _, c := range abis[0].calls {
		if c.name == name {
			nr = c.nr
		}
	}
	// The interpreter reads network byte order, the kernel its own: each half of
	// an argument is put where this host's kernel has it.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], abis[0].audit)
	for i, a := range args {
		low := argument(i)
		high := low ^ 4
		binary.BigEndian.PutUint32(data[low:], uint32(a))
		binary.BigEndian.PutUint32(data[high:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func TestOperators(t *testing.T) {
	const big = uint64(7)<<32 | 5
	fits := map[Operator]func(a, b uint64) bool{
		Equal: func(a, b uint64) bool { return a == b }, NotEqual: func(a, b uint64) bool { return a != b },
		Less: func(a, b uint64) bool { return a < b }, LessEqual: func(a, b uint64) bool { return a <= b },
		Greater: func(a, b uint64) bool { return a > b }, GreaterEqual: func(a, b uint64) bool { return a >= b },
		MaskedEqual: func(a, b uint64) bool { return a&0xffff0000000f == b },
	}
	for op, fit := range fits {
		for _, value := range []uint64{0, 5, big} {
			for _, arg := range []uint64{0, 4, 5, 6, 0x15, big - 1, big, big + 1, 6<<32 | 9, 8<<32 | 1, ^uint64(0)} {
				r := Rules{
					Default: Action{Verdict: Allow},
					Rules: []Rule{
						{Names: []string{"personality"}, Action: Action{Errno, 7}, Arguments: []Argument{{Index: 1, Operator: op, Value: value, Mask: 0xffff0000000f}}},
						{Names: []string{"personality"}, Action: Action{Errno, 9}, Arguments: []Argument{{Index: 0, Value: 3}}},
					},
				}
				want := uint32(unix.SECCOMP_RET_ALLOW)
				if fit(arg, value) {
					want = unix.SECCOMP_RET_ERRNO | 7
				}
				if got := decide(t, r, "personality", 2, arg); got != want {
					t.Errorf("operator %d, %#x with %#x: got %#x, want %#x", op, arg, value, got, want)
				}
				if want == unix.SECCOMP_RET_ALLOW {
					want = unix.SECCOMP_RET_ERRNO | 9 // the rule that follows
				}
				if got := decide(t, r, "personality", 3, arg); got != want {
					t.Errorf("operator %d, %#x with %#x: then got %#x, want %#x", op, arg, value, got, want)
				}
				if got := decide(t, r, "getpid", 3, arg); got != unix.SECCOMP_RET_ALLOW {
					t.Errorf("another call: got %#x", got)
				}
			}
		}
	}
}

func TestRules(t *testing.T) {
	r := Rules{
		Default: Action{Verdict: Errno, Data: 1},
		Rules: []Rule{
			{Names: []string{"getpid", "no_such_call"}, Action: Action{Verdict: Allow}},
			{Names: []string{"kill"}, Action: Action{Verdict: KillProcess}},
			{
				Names: []string{"read"}, Action: Action{Verdict: Log},
				Arguments: []Argument{{Index: 0, Value: 1}, {Index: 2, Operator: Greater, Value: 10}},
			},
		},
	}
	for _, c := range []struct {
		name string
		args []uint64
		want uint32
	}{
		{"getpid", nil, unix.SECCOMP_RET_ALLOW},
		{"kill", nil, unix.SECCOMP_RET_KILL_PROCESS},
		{"read", []uint64{1, 0, 11}, unix.SECCOMP_RET_LOG},
		{"read", []uint64{1, 0, 10}, unix.SECCOMP_RET_ERRNO | 1},
		{"read", []uint64{2, 0, 11}, unix.SECCOMP_RET_ERRNO | 1},
		{"write", nil, unix.SECCOMP_RET_ERRNO | 1},
	} {
		if got := decide(t, r, c.name, c.args...); got != c.want {
			t.Errorf("%s %v: got %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	long := Rules{Rules: make([]Rule, 3000)}
	for i := range long.Rules {
		long.Rules[i] = Rule{Names: []string{"read"}}
	}
	if _, err := CompileRules(long); err == nil {
		t.Error("a filter longer than the kernel takes: got no error")
	}
	if _, err := CompileRules(Rules{Rules: []Rule{{Names: []string{"read"}, Arguments: []Argument{{Index: 6}}}}}); err == nil {
		t.Error("a seventh argument: got no error")
	}
}
