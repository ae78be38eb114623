package server

import (
	"context"
	"encoding/xml"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/testbus"
)

var update = flag.Bool("update", false, "rewrite golden files")

type xmlArg struct {
	Type      string `xml:"type,attr"`
	Name      string `xml:"name,attr"`
	Direction string `xml:"direction,attr"`
}

type xmlMember struct {
	Name   string   `xml:"name,attr"`
	Type   string   `xml:"type,attr"`
	Access string   `xml:"access,attr"`
	Args   []xmlArg `xml:"arg"`
	Notes  []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	} `xml:"annotation"`
}

type xmlInterface struct {
	Name       string      `xml:"name,attr"`
	Methods    []xmlMember `xml:"method"`
	Properties []xmlMember `xml:"property"`
	Signals    []xmlMember `xml:"signal"`
}

type xmlNode struct {
	Interfaces []xmlInterface `xml:"interface"`
}

func members(t *testing.T, doc string) map[string]xmlMember {
	t.Helper()
	var n xmlNode
	if err := xml.Unmarshal([]byte(doc), &n); err != nil {
		t.Fatal(err)
	}
	out := map[string]xmlMember{}
	for _, i := range n.Interfaces {
		for kind, list := range map[string][]xmlMember{"method": i.Methods, "property": i.Properties, "signal": i.Signals} {
			for _, m := range list {
				out[i.Name+" "+kind+" "+m.Name] = m
			}
		}
	}
	return out
}

// TestIntrospection compares what we say of our objects with what stock 252 and
// 257 say of theirs: whatever they have, we have in the same shape.
func TestIntrospection(t *testing.T) {
	bus := testbus.Start(t)
	conn := bus.Connect()
	s := New(Config{Conn: conn, Registry: newFakeRegistry(), Images: fakeImages{}})
	if err := s.Export(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := bus.Connect()
	for object, path := range map[string]string{
		"manager": string(machine1.ManagerPath), "machine": machine1.MachinePrefix + "_2ehost",
		"image": machine1.ImagePrefix + "_2ehost", "logcontrol": "/org/freedesktop/LogControl1",
	} {
		t.Run(object, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var got string
			err := client.Object(conn.Names()[0], dbusPath(path)).
				CallWithContext(ctx, "org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&got)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", object+".xml")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("introspection of %s differs from %s:\n%s", path, golden, got)
			}
			ours := members(t, got)
			for _, version := range []string{"252", "257"} {
				data, err := os.ReadFile(filepath.Join("testdata", "stock-"+version+"-"+object+".xml"))
				if err != nil {
					t.Fatal(err)
				}
				for name, stock := range members(t, string(data)) {
					compareMember(t, version, name, stock, ours[name])
				}
			}
		})
	}
}

func compareMember(t *testing.T, version, name string, stock, ours xmlMember) {
	t.Helper()
	if ours.Name == "" {
		t.Errorf("%s of %s is missing", name, version)
		return
	}
	if stock.Type != ours.Type || stock.Access != ours.Access || len(stock.Args) != len(ours.Args) || len(stock.Notes) != len(ours.Notes) {
		t.Errorf("%s = %+v, in %s %+v", name, ours, version, stock)
		return
	}
	for i, arg := range stock.Args {
		if arg.Name == "who" {
			arg.Name = "whom" // renamed after 252
		}
		if arg != ours.Args[i] {
			t.Errorf("%s argument %d = %+v, in %s %+v", name, i, ours.Args[i], version, arg)
		}
	}
}

// TestEveryErrorHasAName asserts a row for each sentinel of the packages below.
func TestEveryErrorHasAName(t *testing.T) {
	for _, row := range errorNames {
		if got := dbus.NameOf(named(row.is)); got != row.name {
			t.Errorf("%v is %s, want %s", row.is, got, row.name)
		}
	}
	for _, row := range imageErrors {
		if got := dbus.NameOf(named(row.is)); got != row.name || !strings.Contains(got, ".") {
			t.Errorf("%v is %s, want %s", row.is, got, row.name)
		}
	}
}
