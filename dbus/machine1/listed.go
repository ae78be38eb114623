package machine1

import "machined/dbus"

// ListedMachines is the reply of ListMachines, a(ssso).
type ListedMachines []ListedMachine

// AppendDBus encodes the list without reflection.
func (l ListedMachines) AppendDBus(b []byte) []byte {
	return dbus.AppendArray(b, len(l), func(b []byte, i int) []byte {
		m := &l[i]
		b = dbus.AppendString(b, m.Name)
		b = dbus.AppendString(b, m.Class)
		b = dbus.AppendString(b, m.Service)
		return dbus.AppendString(b, string(m.Path))
	})
}
