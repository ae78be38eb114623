package ptyfwd

import "time"

// escapeByte is Ctrl-], the key that all console hotkeys start with.
const escapeByte = 0x1d

// escapeWindow is how long a hotkey sequence may take, from its first byte on.
const escapeWindow = time.Second

// Hotkey names a sequence that the person at the console may type.
type Hotkey int

// The sequences; each starts with two Ctrl-], typed within one second.
const (
	HotkeyNone       Hotkey = iota
	HotkeyDisconnect        // a third Ctrl-]
	HotkeyReboot            // then r
	HotkeyPoweroff          // then p
)

// String returns the verb that the key stands for.
func (h Hotkey) String() string {
	switch h {
	case HotkeyDisconnect:
		return "disconnect"
	case HotkeyReboot:
		return "reboot"
	case HotkeyPoweroff:
		return "poweroff"
	default:
		return "none"
	}
}

// scanner finds hotkeys in a stream of typed bytes. It keeps its state between
// calls, since a terminal delivers a byte at a time.
type scanner struct {
	verbs bool // r and p count too
	count int
	first time.Time
}

// scan looks for the first hotkey in b, typed at time now. It returns the key
// and how many bytes of b end with it; without one it returns HotkeyNone and
// len(b).
func (s *scanner) scan(b []byte, now time.Time) (Hotkey, int) {
	for i, c := range b {
		inTime := s.count > 0 && now.Sub(s.first) <= escapeWindow
		if c == escapeByte {
			if !inTime {
				s.first, s.count = now, 1
				continue
			}
			if s.count++; s.count >= 3 {
				s.count = 0
				return HotkeyDisconnect, i + 1
			}
			continue
		}
		armed := s.verbs && inTime && s.count == 2
		s.count = 0
		switch {
		case armed && c == 'r':
			return HotkeyReboot, i + 1
		case armed && c == 'p':
			return HotkeyPoweroff, i + 1
		}
	}
	return HotkeyNone, len(b)
}
