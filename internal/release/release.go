// Package release says what the programs are, and which release of systemd they stand in for.
package release

import "fmt"

// Systemd is the newest release of systemd whose options, keys and interfaces are here.
const Systemd = 261

// Text is what --version prints. Scripts take the second word of the first line, or what is in
// the brackets, for the version of what they have called: that is what they may expect of it.
func Text(program, version string) string {
	return fmt.Sprintf("systemd %d (%d-machined-%s)\n%s %s\n", Systemd, Systemd, version, program, version)
}
