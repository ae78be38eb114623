package systemd1

import (
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

// FuzzUnitOfPath: object paths of units in signals.
func FuzzUnitOfPath(f *testing.F) {
	f.Add("machine-a.scope", "/org/freedesktop/systemd1/unit/machine_2da_2escope")
	f.Add("0", "/org/freedesktop/systemd1/unit/_")
	f.Fuzz(func(t *testing.T, name, path string) {
		_, _ = unitOfPath(godbus.ObjectPath(path))
		if got, ok := unitOfPath(pathOfUnit(name)); !ok || got != name {
			t.Errorf("%q became %q, %v", name, got, ok)
		}
	})
}
