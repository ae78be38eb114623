package registry

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"machined/internal/sys"
)

// filled is a registry of n machines. Their leader is this very process: it is
// not indexed, so that one process can stand for many.
func filled(b *testing.B, n int) (*Registry, string) {
	b.Helper()
	dir := b.TempDir()
	reg, _ := newTestRegistry(b, dir, newFake())
	for i := range n {
		name := "m" + strconv.Itoa(i)
		leader, err := sys.OpenProcess(os.Getpid())
		if err != nil {
			b.Fatal(err)
		}
		e := &entry{
			m: Machine{Name: name, Class: ClassContainer, Unit: "machine-" + name + ".scope",
				Leader: Process{leader.PID(), leader.FDID()}, VSockCID: VSockCIDAny, RootDirectory: "/var/lib/machines/" + name},
			visible: true, gone: make(chan struct{}), check: make(chan struct{}, 1), leader: leader,
		}
		reg.machines[name] = e
		reg.byUnit[e.m.Unit] = append(reg.byUnit[e.m.Unit], e)
	}
	return reg, dir
}

func sizes(b *testing.B, f func(b *testing.B, n int)) {
	for _, n := range []int{1, 100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			f(b, n)
		})
	}
}

func BenchmarkList(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		reg, _ := filled(b, min(n, 500))
		for i := reg.Len(); i < n; i++ { // without a descriptor each
			name := "x" + strconv.Itoa(i)
			reg.machines[name] = &entry{m: Machine{Name: name}, visible: true}
		}
		for b.Loop() {
			reg.List()
		}
	})
}

func BenchmarkByPID(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		reg, _ := filled(b, min(n, 500))
		req, _ := request(b, "target")
		if _, err := reg.Create(context.Background(), req); err != nil {
			b.Fatal(err)
		}
		for i := reg.Len(); i < n; i++ {
			name := "x" + strconv.Itoa(i)
			reg.machines[name] = &entry{m: Machine{Name: name}, visible: true}
		}
		for b.Loop() {
			if _, err := reg.ByPID(req.Leader.PID()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRegister: one more and one less costs the same beside any number.
func BenchmarkRegister(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		reg, _ := filled(b, min(n, 500))
		for i := reg.Len(); i < n; i++ {
			name := "x" + strconv.Itoa(i)
			reg.machines[name] = &entry{m: Machine{Name: name}, visible: true}
		}
		reg.listeners = nil // nobody drains what they would be told
		req, _ := request(b, "a")
		for b.Loop() {
			if _, err := reg.Create(context.Background(), req); err != nil {
				b.Fatal(err)
			}
			if err := reg.Unregister(context.Background(), "a"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		dir := b.TempDir()
		files := stateFiles{dir: dir}
		for i := range n {
			name := "m" + strconv.Itoa(i)
			m := Machine{Name: name, Class: ClassContainer, Unit: "machine-" + name + ".scope", Leader: Process{PID: os.Getpid()}, RootDirectory: "/var/lib/machines/" + name}
			if err := files.save(&m); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			names, err := files.names()
			if err != nil {
				b.Fatal(err)
			}
			for _, name := range names {
				if _, err := files.load(name); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
