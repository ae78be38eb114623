package oci

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"machined/spawn/settings"
)

func (c *Config) property(format string, args ...any) {
	c.Properties = append(c.Properties, fmt.Sprintf(format, args...))
}

func (c *Config) resources(n node) error {
	return n.object(table{
		"devices":        func(n node) error { return n.each(c.deviceRule) },
		"memory":         c.memory,
		"cpu":            c.cpu,
		"blockIO":        c.blockIO,
		"pids":           c.pids,
		"unified":        c.unified,
		"hugepageLimits": unsupported,
		"network":        unsupported,
		"rdma":           unsupported,
	})
}

func (c *Config) deviceRule(n node) error {
	r := DeviceRule{Type: "a", Major: -1, Minor: -1, Access: "rwm"}
	number := func(to *int64) func(node) error {
		return func(n node) (err error) { *to, err = n.integer(-1, 1<<20-1); return err }
	}
	err := n.object(table{
		"allow": func(n node) error { return n.boolean(&r.Allow) },
		"type": func(n node) error {
			if err := n.text(&r.Type); err != nil {
				return err
			}
			if !slices.Contains([]string{"a", "b", "c"}, r.Type) {
				return n.errorf("%q is no type of devices (a, b, c are)", r.Type)
			}
			return nil
		},
		"major": number(&r.Major), "minor": number(&r.Minor),
		"access": func(n node) error {
			if err := n.text(&r.Access); err != nil {
				return err
			}
			if rest := strings.Trim(r.Access, "rwm"); rest != "" {
				return n.errorf("%q is no access to a device (of r, w, m)", r.Access)
			}
			return nil
		},
	}, "allow")
	c.DeviceRules = append(c.DeviceRules, r)
	return err
}

// unlimited is -1 in the file.
const unlimited = -1

func (c *Config) memory(n node) error {
	values := map[string]int64{}
	size := func(name string) func(node) error {
		return func(n node) error {
			v, err := n.integer(unlimited, math.MaxInt64)
			values[name] = v
			return err
		}
	}
	obsolete := func(n node) error { // of cgroup v1
		_, err := n.integer(unlimited, math.MaxInt64)
		c.Warnings = append(c.Warnings, n.path+": there is none in cgroup v2, ignoring")
		return err
	}
	err := n.object(table{
		"limit": size("limit"), "reservation": size("reservation"), "swap": size("swap"),
		"kernel": obsolete, "kernelTCP": obsolete, "swappiness": obsolete,
		"disableOOMKiller": func(n node) error {
			var off bool
			err := n.boolean(&off)
			if off {
				c.Warnings = append(c.Warnings, n.path+": there is none in cgroup v2, ignoring")
			}
			return err
		},
		"useHierarchy":      func(n node) error { return n.boolean(new(bool)) },
		"checkBeforeUpdate": func(n node) error { return n.boolean(new(bool)) },
	})
	if err != nil {
		return err
	}
	bytes := func(v int64) string {
		if v < 0 {
			return "infinity"
		}
		return fmt.Sprint(v)
	}
	limit, limited := values["limit"]
	if limited {
		c.property("MemoryMax=%s", bytes(limit))
	}
	if v, ok := values["reservation"]; ok {
		c.property("MemoryLow=%s", bytes(v))
	}
	if v, ok := values["swap"]; ok {
		// Here with the memory in it, there without.
		switch {
		case v < 0:
			c.property("MemorySwapMax=infinity")
		case !limited || limit < 0 || v < limit:
			return n.field("swap", nil).errorf("%d must be at least the memory limit, which it includes", v)
		default:
			c.property("MemorySwapMax=%d", v-limit)
		}
	}
	return nil
}

func (c *Config) cpu(n node) error {
	var quota int64
	var period, shares uint64
	seen := map[string]bool{}
	err := n.object(table{
		"shares": func(n node) (err error) {
			const most = 262144
			if shares, err = n.unsigned(most); err == nil && shares < 2 {
				return n.errorf("%d is out of the range 2 to %d", shares, most)
			}
			return err
		},
		"quota": func(n node) (err error) {
			seen["quota"] = true
			if quota, err = n.integer(unlimited, math.MaxInt64/1_000_000); err == nil && quota == 0 {
				return n.errorf("must be more than 0 µs")
			}
			return err
		},
		"period": func(n node) (err error) {
			seen["period"] = true
			const most = 1_000_000 // µs
			if period, err = n.unsigned(most); err == nil && period == 0 {
				return n.errorf("must be more than 0 µs")
			}
			return err
		},
		"cpus": func(n node) error {
			var list string
			if err := n.text(&list); err != nil {
				return err
			}
			if _, err := settings.ParseCPUs(list); err != nil {
				return n.errorf("%q is no list of CPUs", list)
			}
			c.property("AllowedCPUs=%s", list)
			return nil
		},
		"burst": unsupported, "idle": unsupported, "mems": unsupported,
		"realtimeRuntime": unsupported, "realtimePeriod": unsupported,
	})
	if err != nil {
		return err
	}
	if seen["quota"] != seen["period"] {
		return n.errorf("quota and period must be given together")
	}
	if quota > 0 {
		c.property("CPUQuota=%g%%", float64(quota)*100/float64(period))
	}
	if shares > 0 {
		// The kernel's range of shares, 2 to 262144, on that of weights, 1 to 10000.
		c.property("CPUWeight=%d", 1+(shares-2)*9999/262142)
	}
	return nil
}

func (c *Config) pids(n node) error {
	return n.object(table{"limit": func(n node) error {
		v, err := n.integer(unlimited, math.MaxInt32)
		switch {
		case err != nil:
			return err
		case v == 0:
			return n.errorf("must be more than 0")
		case v < 0:
			c.property("TasksMax=infinity")
		default:
			c.property("TasksMax=%d", v)
		}
		return nil
	}}, "limit")
}

// weight is of block I/O, 10 to 1000 here and 1 to 10000 in cgroup v2.
func (n node) weight() (uint64, error) {
	w, err := n.unsigned(1000)
	if err == nil && w < 10 {
		return 0, n.errorf("weight %d is out of the range 10 to 1000", w)
	}
	return 1 + (w-10)*9999/990, err
}

func (c *Config) blockIO(n node) error {
	device := func(property, value string) func(node) error {
		return func(n node) error {
			return n.each(func(n node) error {
				var major, minor, v uint64
				number := func(to *uint64) func(node) error {
					return func(n node) (err error) { *to, err = n.unsigned(1<<20 - 1); return err }
				}
				t := table{"major": number(&major), "minor": number(&minor)}
				required := []string{"major", "minor"}
				if value == "rate" {
					t["rate"] = func(n node) (err error) { v, err = n.unsigned(math.MaxInt64); return err }
					required = append(required, "rate")
				} else {
					t["weight"] = func(n node) (err error) { v, err = n.weight(); return err }
					t["leafWeight"] = nil
				}
				if err := n.object(t, required...); err != nil {
					return err
				}
				if v > 0 {
					c.property("%s=/dev/block/%d:%d %d", property, major, minor, v)
				}
				return nil
			})
		}
	}
	return n.object(table{
		"weight": func(n node) error {
			w, err := n.weight()
			if err == nil {
				c.property("IOWeight=%d", w)
			}
			return err
		},
		"leafWeight":              func(n node) error { _, err := n.weight(); return err },
		"weightDevice":            device("IODeviceWeight", "weight"),
		"throttleReadBpsDevice":   device("IOReadBandwidthMax", "rate"),
		"throttleWriteBpsDevice":  device("IOWriteBandwidthMax", "rate"),
		"throttleReadIOPSDevice":  device("IOReadIOPSMax", "rate"),
		"throttleWriteIOPSDevice": device("IOWriteIOPSMax", "rate"),
	})
}

// unified are files of the cgroup, by their names (cgroup v2 of the kernel).
func (c *Config) unified(n node) error {
	pairs, err := n.pairs()
	for _, p := range pairs {
		controller, _, ok := strings.Cut(p.Key, ".")
		if !ok || strings.ContainsAny(p.Key, "/") || controller == "cgroup" || controller == "" {
			return n.errorf("%q is no file of a controller", p.Key)
		}
	}
	c.Unified = pairs
	return err
}
