package cli

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// Shown says which properties to print, and how.
type Shown struct {
	Names     []string // empty: all
	Empty     bool     // also empty ones
	ValueOnly bool
}

// WriteProperties prints properties as KEY=VALUE lines: those named in order
// first and in that order, since the wire's own order is lost in a map.
func (s Shown) WriteProperties(w io.Writer, order []string, all map[string]godbus.Variant) error {
	names := make([]string, 0, len(all))
	for _, name := range order {
		if _, ok := all[name]; ok {
			names = append(names, name)
		}
	}
	rest := len(names)
	for name := range all {
		if !slices.Contains(order, name) {
			names = append(names, name)
		}
	}
	sort.Strings(names[rest:])
	var b strings.Builder
	for _, name := range names {
		if len(s.Names) > 0 && !slices.Contains(s.Names, name) {
			continue
		}
		text, printable := propertyText(name, all[name])
		switch {
		case !printable:
			if s.Empty {
				b.WriteString(name + "=[unprintable]\n")
			}
		case text == "" && !s.Empty && !(len(s.Names) > 0 && s.ValueOnly):
		case s.ValueOnly:
			b.WriteString(text + "\n")
		default:
			b.WriteString(name + "=" + text + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// propertyText writes one value; printable is false for types that have no
// text form in stock's tools.
func propertyText(name string, variant godbus.Variant) (text string, printable bool) {
	switch v := variant.Value().(type) {
	case string:
		return Printable(v, false), true
	case bool:
		return FormatBool(v), true
	case []byte:
		if len(v) == 0 {
			return "", true
		}
		return hex.EncodeToString(v), true
	case uint64:
		switch {
		case strings.HasSuffix(name, "Timestamp"):
			return FormatTime(v), true
		case strings.HasPrefix(name, "Limit") && v == Unknown:
			return "infinity", true
		}
		return fmt.Sprint(v), true
	case uint32, int32, uint16, int16, int64, uint8, float64:
		return fmt.Sprint(v), true
	case godbus.ObjectPath:
		return string(v), true
	case []string:
		return Printable(strings.Join(v, " "), false), true
	}
	return "", false
}
