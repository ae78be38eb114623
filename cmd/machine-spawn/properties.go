package main

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/spawn/settings"
)

// kinds says how the value of a unit property is written and sent
// (systemd.resource-control(5), systemd.kill(5), systemd.unit(5)).
var kinds = map[string]string{
	"Description": "text", "Slice": "text", "DevicePolicy": "text", "KillMode": "text", "CollectMode": "text",
	"ManagedOOMSwap": "text", "ManagedOOMMemoryPressure": "text", "OOMPolicy": "text", "ManagedOOMPreference": "text",
	"MemoryPressureWatch": "text", "User": "text", "Group": "text",
	"CPUAccounting": "bool", "MemoryAccounting": "bool", "IOAccounting": "bool", "TasksAccounting": "bool",
	"IPAccounting": "bool", "Delegate": "bool", "SendSIGKILL": "bool", "SendSIGHUP": "bool", "DefaultDependencies": "bool",
	"CoredumpReceive": "bool", "MemoryZSwapWriteback": "bool",
	"MemoryMin": "size", "MemoryLow": "size", "MemoryHigh": "size", "MemoryMax": "size", "MemorySwapMax": "size",
	"MemoryZSwapMax": "size", "TasksMax": "size", "DefaultMemoryLow": "size", "DefaultMemoryMin": "size", "MemoryLimit": "size",
	"CPUWeight": "weight", "StartupCPUWeight": "weight", "IOWeight": "weight", "StartupIOWeight": "weight", "CPUShares": "weight",
	"BlockIOWeight":    "weight",
	"StartupMemoryLow": "size", "StartupMemoryHigh": "size", "StartupMemoryMax": "size", "StartupMemorySwapMax": "size",
	"CPUQuota":    "quota",
	"AllowedCPUs": "cpus", "AllowedMemoryNodes": "cpus", "StartupAllowedCPUs": "cpus", "StartupAllowedMemoryNodes": "cpus",
	"IPAddressAllow": "addresses", "IPAddressDeny": "addresses",
	"DisableControllers": "units", "Documentation": "units",
	"KillSignal": "signal", "RestartKillSignal": "signal", "FinalKillSignal": "signal",
	"TimeoutStopSec": "span", "RuntimeMaxSec": "span", "CPUQuotaPeriodSec": "span", "RuntimeRandomizedExtraSec": "span",
	"MemoryPressureThresholdSec": "span",
	"DeviceAllow":                "device",
	"After":                      "units", "Before": "units", "Requires": "units", "Wants": "units", "BindsTo": "units", "PartOf": "units", "Conflicts": "units",
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
		usec, err := settings.ParseSpan(value)
		if err != nil {
			return bad(err)
		}
		name = strings.TrimSuffix(name, "Sec") + "USec"
		return make(usec)
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
	case "addresses":
		list, err := prefixes(value)
		if err != nil {
			return bad(err)
		}
		return make(list)
	}
	return property{}, fmt.Errorf("Unknown assignment: %s", assignment)
}

// ipPrefix is an address range as PID 1 takes it.
type ipPrefix struct {
	Family  int32
	Address []byte
	Length  uint32
}

// prefixWords are the names that address ranges have (systemd.resource-control(5)).
var prefixWords = map[string][]string{
	"any": {"0.0.0.0/0", "::/0"}, "localhost": {"127.0.0.0/8", "::1/128"},
	"link-local": {"169.254.0.0/16", "fe80::/64"}, "multicast": {"224.0.0.0/4", "ff00::/8"},
}

// prefixes reads addresses with or without the length of a prefix, and words.
func prefixes(s string) ([]ipPrefix, error) {
	list := []ipPrefix{}
	for _, w := range strings.Fields(s) {
		texts, ok := prefixWords[w]
		if !ok {
			texts = []string{w}
		}
		for _, text := range texts {
			p, err := netip.ParsePrefix(text)
			if a, plain := netip.ParseAddr(text); plain == nil && a.Zone() == "" {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				return nil, fmt.Errorf("%q is no address range", w)
			}
			family := int32(unix.AF_INET)
			if p.Addr().Is6() {
				family = unix.AF_INET6
			}
			list = append(list, ipPrefix{family, p.Addr().AsSlice(), uint32(p.Bits())})
		}
	}
	return list, nil
}
