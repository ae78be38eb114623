package settings

import (
	"errors"
	"fmt"
	"strings"
)

// sentences are stock's words about a value that is not taken; KEY and VALUE stand
// for themselves. The rule that the value breaks comes behind, in brackets. Keys
// that are not here have "Failed to parse KEY=VALUE, ignoring: Invalid argument".
var sentences = map[string]string{
	"Boot":                 "Failed to parse KEY= parameter VALUE, ignoring: Invalid argument",
	"ProcessTwo":           "Failed to parse KEY= parameter VALUE, ignoring: Invalid argument",
	"WorkingDirectory":     "WorkingDirectory= path is not absolute, ignoring: VALUE",
	"NamespacePath":        "NamespacePath= path is not absolute, ignoring: VALUE",
	"PivotRoot":            "Invalid pivot root mount specification VALUE: Invalid argument",
	"PrivateUsers":         "UID/GID shift invalid, ignoring: VALUE",
	"Personality":          "Failed to parse Personality=VALUE, ignoring.",
	"OOMScoreAdjust":       "Failed to parse the OOM score adjust value, ignoring: VALUE",
	"Hostname":             "Specified invalid hostname, ignoring assignment: VALUE",
	"LinkJournal":          "Failed to parse link journal mode, ignoring: VALUE",
	"Bind":                 "Invalid bind mount specification VALUE: Invalid argument",
	"BindReadOnly":         "Invalid bind mount specification VALUE: Invalid argument",
	"TemporaryFileSystem":  "Invalid temporary file system specification VALUE: Invalid argument",
	"Inaccessible":         "Invalid inaccessible file system specification VALUE: Invalid argument",
	"Overlay":              "Invalid overlay file system specification VALUE, ignoring: Cannot assign requested address",
	"OverlayReadOnly":      "Invalid overlay file system specification VALUE, ignoring: Cannot assign requested address",
	"PrivateUsersChown":    "Failed to parse user namespace ownership mode, ignoring: VALUE",
	"BindUser":             "User name 'VALUE' not valid, ignoring.",
	"VirtualEthernetExtra": "Invalid extra virtual Ethernet link specification VALUE: Invalid argument",
	"Bridge":               "Interface name is not valid or too long, ignoring assignment: VALUE",
	"Zone":                 "Invalid network zone name, ignoring: VALUE",
	"Port":                 "Failed to parse host port VALUE: Invalid argument",
}

// errFatal is wrapped where a line makes the whole file unusable, as in stock: a
// machine without the setting would be another one than was asked for.
var errFatal = errors.New("Failed to parse file: Invalid argument")

// plainError is a message that is whole already.
type plainError string

func (e plainError) Error() string { return string(e) }

// complaint is the warning about a key's value.
func complaint(key, value string, err error) string {
	var plain plainError
	if errors.As(err, &plain) {
		return string(plain)
	}
	s, ok := sentences[key]
	if !ok {
		s = "Failed to parse KEY=VALUE, ignoring: Invalid argument"
	}
	return strings.NewReplacer("KEY", key, "VALUE", value).Replace(s) + fmt.Sprintf(" (%v)", err)
}
