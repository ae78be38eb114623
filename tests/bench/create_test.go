//go:build integration

package bench

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// BenchmarkCreateMachine is the time from CreateMachine to the end of its
// scope's job, and that of machinectl list with what has been made, in ms.
func BenchmarkCreateMachine(b *testing.B) {
	const machines = 100
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		h := bench(b)
		client := "machinectl"
		if impl == host.Stock {
			h.RunStockDaemon(b)
			client = h.Stock(client)
		}
		conn := h.Bus(b)
		p := h.Start(b, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do sleep 1000000 & echo $!; done; echo all; wait", machines))
		pids := strings.Fields(p.Expect(b, "all"))
		start := time.Now()
		for _, field := range pids {
			pid, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				b.Fatal(err)
			}
			err = conn.Object("org.freedesktop.machine1", "/org/freedesktop/machine1").Call("org.freedesktop.machine1.Manager.CreateMachine", 0,
				"m"+field, make([]byte, 16), "bench", "container", uint32(pid), "", []struct {
					Name  string
					Value godbus.Variant
				}{}).Err
			if err != nil {
				b.Fatalf("create machine m%s: %v", field, err)
			}
		}
		record(b, "create machine", impl, float64(time.Since(start).Nanoseconds())/float64(len(pids))/1e6)
		inHost(b, h, "machinectl list, 100", impl, client+" list --no-pager")
	}
}

// BenchmarkSpawnUserns is BenchmarkSpawn's unregistered one with user and
// network namespaces, as the template unit has it.
func BenchmarkSpawnUserns(b *testing.B) {
	h := bench(b)
	for impl, program := range map[host.Impl]string{host.Ours: "systemd-nspawn", host.Stock: h.Stock("systemd-nspawn")} {
		tree := h.BusyboxTree(b, "bb-"+string(impl))
		inHost(b, h, "spawn -U, own network", impl, program+" -q --register=no --keep-unit --pipe -U --private-network -D "+tree+" true")
	}
}
