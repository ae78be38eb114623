package spawn

import (
	"testing"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/sysctlguard"
	"machined/spawn/stage"
)

func TestGuardFor(t *testing.T) {
	machine := sysctlguard.Own{IPC: true, UTS: true, PID: true}
	network, users := machine, machine
	network.Network, users.Users = true, true
	for _, c := range []struct {
		name   string
		plan   stage.Plan
		want   sysctlguard.Own
		needed bool
	}{
		{"plain", stage.Plan{APIVFS: "no"}, machine, true},
		{"network of its own", stage.Plan{APIVFS: "no", PrivateNet: true}, network, true},
		{"its network's settings are to be writable", stage.Plan{APIVFS: "network"}, network, true},
		{"may administer the host's network", stage.Plan{APIVFS: "no", CapBounding: caps.Bit(unix.CAP_NET_ADMIN)}, network, true},
		{"all is to be writable", stage.Plan{APIVFS: "yes"}, sysctlguard.Own{}, false},
		{"user namespace", stage.Plan{APIVFS: "no", Userns: &stage.Userns{Base: 65536, Count: 65536}}, sysctlguard.Own{}, false},
		{"user namespace with the host's root", stage.Plan{APIVFS: "no", Userns: &stage.Userns{Count: 65536}}, users, true},
		{"may load modules", stage.Plan{APIVFS: "no", CapBounding: caps.Bit(unix.CAP_SYS_MODULE)}, sysctlguard.Own{}, false},
		{"sees the host's processes", stage.Plan{APIVFS: "no", SharePID: true}, sysctlguard.Own{}, false},
		{"host's IPC", stage.Plan{APIVFS: "no", ShareIPC: true}, sysctlguard.Own{UTS: true, PID: true}, true},
		{"host's name", stage.Plan{APIVFS: "no", ShareUTS: true}, sysctlguard.Own{IPC: true, PID: true}, true},
	} {
		if own, needed := guardFor(&c.plan); own != c.want || needed != c.needed {
			t.Errorf("%s: %+v, %t", c.name, own, needed)
		}
	}
}
