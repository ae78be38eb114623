package oci

import (
	"math"
	"strings"

	"machined/internal/seccomp"
)

var actions = map[string]seccomp.Verdict{
	"SCMP_ACT_KILL": seccomp.KillThread, "SCMP_ACT_KILL_THREAD": seccomp.KillThread,
	"SCMP_ACT_KILL_PROCESS": seccomp.KillProcess, "SCMP_ACT_TRAP": seccomp.Trap,
	"SCMP_ACT_ERRNO": seccomp.Errno, "SCMP_ACT_TRACE": seccomp.Trace,
	"SCMP_ACT_ALLOW": seccomp.Allow, "SCMP_ACT_LOG": seccomp.Log,
}

var operators = map[string]seccomp.Operator{
	"SCMP_CMP_NE": seccomp.NotEqual, "SCMP_CMP_LT": seccomp.Less, "SCMP_CMP_LE": seccomp.LessEqual,
	"SCMP_CMP_EQ": seccomp.Equal, "SCMP_CMP_GE": seccomp.GreaterEqual, "SCMP_CMP_GT": seccomp.Greater,
	"SCMP_CMP_MASKED_EQ": seccomp.MaskedEqual,
}

// eperm is what SCMP_ACT_ERRNO returns unless the file says otherwise.
const eperm = 1

func (c *Config) seccomp(n node) error {
	r := &seccomp.Rules{Default: seccomp.Action{Data: eperm}}
	c.Seccomp = r
	return n.object(table{
		"defaultAction":   func(n node) error { return n.action(&r.Default.Verdict) },
		"defaultErrnoRet": func(n node) error { return n.errno(&r.Default.Data) },
		"architectures": func(n node) error {
			return n.each(func(n node) error {
				var name string
				if err := n.text(&name); err != nil {
					return err
				}
				arch, ok := strings.CutPrefix(name, "SCMP_ARCH_")
				if !ok || !seccomp.ValidArchitecture(arch) {
					return n.errorf("%q is no architecture", name)
				}
				r.Architectures = append(r.Architectures, arch)
				return nil
			})
		},
		"flags": func(n node) error {
			return n.each(func(n node) error {
				var name string
				if err := n.text(&name); err != nil {
					return err
				}
				switch name {
				case "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
					return nil // one thread, no log and no listener: nothing changes
				}
				return n.errorf("%q is no flag of a filter", name)
			})
		},
		"listenerPath":     unsupported,
		"listenerMetadata": unsupported,
		"syscalls":         func(n node) error { return n.each(func(n node) error { return n.rule(r) }) },
	}, "defaultAction")
}

func (n node) action(to *seccomp.Verdict) error {
	var name string
	if err := n.text(&name); err != nil {
		return err
	}
	v, ok := actions[name]
	if !ok {
		return n.errorf("%q is no supported action", name)
	}
	*to = v
	return nil
}

func (n node) errno(to *uint16) error {
	const maxErrno = 4095
	v, err := n.unsigned(maxErrno)
	*to = uint16(v)
	return err
}

func (n node) rule(r *seccomp.Rules) error {
	rule := seccomp.Rule{Action: seccomp.Action{Data: eperm}}
	err := n.object(table{
		"names":    func(n node) error { return n.texts(&rule.Names) },
		"action":   func(n node) error { return n.action(&rule.Action.Verdict) },
		"errnoRet": func(n node) error { return n.errno(&rule.Action.Data) },
		"args":     func(n node) error { return n.each(func(n node) error { return n.condition(&rule) }) },
	}, "names", "action")
	if err == nil && len(rule.Names) == 0 {
		return n.errorf("names no system call")
	}
	r.Rules = append(r.Rules, rule)
	return err
}

func (n node) condition(rule *seccomp.Rule) error {
	var a seccomp.Argument
	var two uint64
	number := func(to *uint64) func(node) error {
		return func(n node) (err error) { *to, err = n.unsigned(math.MaxUint64); return err }
	}
	err := n.object(table{
		"index": func(n node) error {
			const last = 5
			v, err := n.unsigned(last)
			a.Index = int(v)
			return err
		},
		"value": number(&a.Value), "valueTwo": number(&two),
		"op": func(n node) error {
			var name string
			if err := n.text(&name); err != nil {
				return err
			}
			op, ok := operators[name]
			if !ok {
				return n.errorf("%q is no operator", name)
			}
			a.Operator = op
			return nil
		},
	}, "index", "value", "op")
	if a.Operator == seccomp.MaskedEqual {
		a.Mask, a.Value = a.Value, two
	}
	rule.Arguments = append(rule.Arguments, a)
	return err
}
