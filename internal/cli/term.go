package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// Terminal says how to write to the person: where, how wide, in which colours.
type Terminal struct {
	OutTTY, ErrTTY bool
	Width          int // columns of standard output; 80 when not known
	Height         int
	Color          bool // on standard output
	ErrColor       bool // on standard error
	Colors256      bool
	dumb           bool
}

// DetectTerminal looks at the standard descriptors and at the environment, by
// the rules of SYSTEMD_COLORS, NO_COLOR and TERM (systemd(1)).
func DetectTerminal() *Terminal {
	t := &Terminal{OutTTY: term.IsTerminal(1), ErrTTY: term.IsTerminal(2), Width: 80, Height: 24}
	if w, h, err := term.GetSize(1); err == nil && w > 0 {
		t.Width, t.Height = w, h
	}
	if w, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && w > 0 {
		t.Width = w
	}
	if h, err := strconv.Atoi(os.Getenv("LINES")); err == nil && h > 0 {
		t.Height = h
	}
	mode, known := colorMode(os.Getenv("SYSTEMD_COLORS"))
	dumb := os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb"
	t.dumb = dumb
	switch {
	case known && mode == 0:
	case known:
		t.Color, t.ErrColor, t.Colors256 = true, true, mode == 256
	case os.Getenv("NO_COLOR") != "":
	default:
		t.Color = t.OutTTY && !dumb
		t.ErrColor = t.ErrTTY && !dumb
		t.Colors256 = true
	}
	return t
}

// Dumb says that nobody looks at a terminal that can draw: output or messages
// go elsewhere, or the terminal is one that has no sequences.
func (t *Terminal) Dumb() bool { return !t.OutTTY || !t.ErrTTY || t.dumb }

func colorMode(value string) (mode int, known bool) {
	switch strings.ToLower(value) {
	case "":
		return 0, false
	case "16", "auto-16":
		return 16, true
	case "256", "24bit", "auto-256", "auto-24bit":
		return 256, true
	}
	if on, err := ParseBool(value); err == nil {
		if on {
			return 256, true
		}
		return 0, true
	}
	return 0, false
}

// Style is a sequence that starts a colour; "" is none.
type Style string

// The styles that stock's tools use.
const (
	StyleNone      Style = ""
	StyleUnderline Style = "\x1b[4m"
	StyleRed       Style = "\x1b[0;1;31m"
	StyleGreen     Style = "\x1b[0;1;32m"
	StyleBold      Style = "\x1b[0;1;39m"
	StyleNumber    Style = "\x1b[0;1;34m"
	StyleText      Style = "\x1b[0;32m"
	styleGrey      Style = "\x1b[0;38:5:245m"
	styleGrey16    Style = "\x1b[0;90m"
	styleOff             = "\x1b[0m"
)

// Grey is the style of what matters less.
func (t *Terminal) Grey() Style {
	if t.Colors256 {
		return styleGrey
	}
	return styleGrey16
}

// Paint wraps s in a style when colours are on.
func (t *Terminal) Paint(style Style, s string) string {
	if !t.Color || style == StyleNone {
		return s
	}
	return string(style) + s + styleOff
}

// Error writes a message for a person to standard error, in red on a terminal.
func (t *Terminal) Error(format string, args ...any) { t.log(StyleRed, format, args...) }

// Notice writes a message to standard error, in bold on a terminal.
func (t *Terminal) Notice(format string, args ...any) { t.log(StyleBold, format, args...) }

// Info writes a plain message to standard error.
func (t *Terminal) Info(format string, args ...any) { t.log(StyleNone, format, args...) }

func (t *Terminal) log(style Style, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if t.ErrColor && style != StyleNone {
		text = string(style) + text + styleOff
	}
	end := "\n"
	if t.ErrTTY && !t.dumb {
		end = "\r\n"
	}
	fmt.Fprint(os.Stderr, text+end)
}
