package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/spawn/settings"
)

// kinds says how the value of a unit property is written and sent
// (systemd.resource-control(5), systemd.kill(5), systemd.unit(5)).
var kinds = map[string]string{
	"Description": "text", "Slice": "text", "DevicePolicy": "text", "KillMode": "text", "CollectMode": "text",
	"ManagedOOMSwap": "text", "ManagedOOMMemoryPressure": "text", "OOMPolicy": "text",
	"CPUAccounting": "bool", "MemoryAccounting": "bool", "IOAccounting": "bool", "TasksAccounting": "bool",
	"IPAccounting": "bool", "Delegate": "bool", "SendSIGKILL": "bool", "SendSIGHUP": "bool", "DefaultDependencies": "bool",
	"CoredumpReceive": "bool", "MemoryZSwapWriteback": "bool",
	"MemoryMin": "size", "MemoryLow": "size", "MemoryHigh": "size", "MemoryMax": "size", "MemorySwapMax": "size",
	"MemoryZSwapMax": "size", "TasksMax": "size", "DefaultMemoryLow": "size", "DefaultMemoryMin": "size", "MemoryLimit": "size",
	"CPUWeight": "weight", "StartupCPUWeight": "weight", "IOWeight": "weight", "StartupIOWeight": "weight", "CPUShares": "weight",
	"BlockIOWeight": "weight",
	"CPUQuota":      "quota",
	"AllowedCPUs":   "cpus", "AllowedMemoryNodes": "cpus",
	"KillSignal": "signal", "RestartKillSignal": "signal", "FinalKillSignal": "signal",
	"TimeoutStopSec": "span", "RuntimeMaxSec": "span",
	"DeviceAllow": "device",
	"After":       "units", "Before": "units", "Requires": "units", "Wants": "units", "BindsTo": "units", "PartOf": "units", "Conflicts": "units",
	"RequiresMountsFor": "units",
	"IODeviceWeight":    "perdevice", "IOReadBandwidthMax": "perdevice", "IOWriteBandwidthMax": "perdevice",
	"IOReadIOPSMax": "perdevice", "IOWriteIOPSMax": "perdevice",
}

// unitProperty reads NAME=VALUE.
func unitProperty(assignment string) (property, error) {
	name, value, _ := strings.Cut(assignment, "=")
	bad := func(err error) (property, error) {
		return property{}, fmt.Errorf("Failed to parse unit property %s: %w", assignment, err)
	}
	make := func(v any) (property, error) { return property{name, godbus.MakeVariant(v)}, nil }
	switch kinds[name] {
	case "text":
		return make(value)
	case "bool":
		b, err := settings.ParseBool(value)
		if err != nil {
			return bad(err)
		}
		return make(b)
	case "size":
		if value == "infinity" || value == "" {
			return make(uint64(math.MaxUint64))
		}
		if pct, ok := strings.CutSuffix(value, "%"); ok {
			n, err := strconv.ParseFloat(pct, 64)
			if err != nil || n < 0 || n > 100 {
				return bad(fmt.Errorf("%q is no percentage", value))
			}
			name += "Scale"
			return make(uint32(n / 100 * math.MaxUint32))
		}
		n, err := settings.ParseSize(value)
		if err != nil {
			return bad(err)
		}
		return make(n)
	case "weight":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n < 1 || n > 262144 {
			return bad(fmt.Errorf("%q is no weight", value))
		}
		return make(n)
	case "quota":
		pct, ok := strings.CutSuffix(value, "%")
		n, err := strconv.ParseFloat(pct, 64)
		if !ok || err != nil || n <= 0 {
			return bad(fmt.Errorf("%q is no percentage", value))
		}
		name = "CPUQuotaPerSecUSec"
		return make(uint64(n * 10000))
	case "cpus":
		cpus, err := settings.ParseCPUs(value)
		if err != nil {
			return bad(err)
		}
		var mask []byte
		for _, n := range cpus {
			for len(mask) <= n/8 {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
		return make(mask)
	case "signal":
		sig, err := settings.ParseSignal(value)
		if err != nil {
			return bad(err)
		}
		return make(int32(sig))
	case "span":
		d, err := time.ParseDuration(value)
		if n, numErr := strconv.ParseFloat(value, 64); numErr == nil {
			d, err = time.Duration(n*float64(time.Second)), nil
		}
		if err != nil || d < 0 {
			return bad(fmt.Errorf("%q is no time span", value))
		}
		name = strings.TrimSuffix(name, "Sec") + "USec"
		return make(uint64(d.Microseconds()))
	case "device":
		path, access, _ := strings.Cut(value, " ")
		if access == "" {
			access = "rwm"
		}
		return make([]deviceAllow{{path, access}})
	case "perdevice":
		path, number, _ := strings.Cut(value, " ")
		n, err := settings.ParseSize(number)
		if err != nil || !strings.HasPrefix(path, "/") {
			return bad(fmt.Errorf("%q is no device and number", value))
		}
		return make([]deviceNumber{{path, n}})
	case "units":
		return make(strings.Fields(value))
	}
	return property{}, fmt.Errorf("Unknown assignment: %s", assignment)
}
