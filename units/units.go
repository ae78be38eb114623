// Package units holds the unit files, bus policies and activation files that
// are installed, and gives machined the policies that its private bus needs.
// Nothing here is code that acts.
package units

import "embed"

// Policies are the D-Bus policies of our bus names, in dbus/system.d.
//
//go:embed dbus/system.d/*.conf
var Policies embed.FS
