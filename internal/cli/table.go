package cli

import (
	"io"
	"sort"
	"strings"
)

// Cell is one field of a table: the text for people, and the value for JSON
// (string, bool, uint64, float64 or nil). An empty text is drawn as "-".
type Cell struct {
	Text  string
	Style Style
	Value any
}

// Text is a cell whose JSON value is its text, or null when empty.
func Text(s string) Cell {
	s = Printable(s, true)
	if s == "" {
		return Cell{}
	}
	return Cell{Text: s, Value: s}
}

// SizeCell shows a size in bytes; nothing when it is not known.
func SizeCell(n uint64) Cell {
	if n == Unknown {
		return Cell{}
	}
	return Cell{Text: FormatBytes(n), Value: n}
}

// TimeCell shows a moment in µs since 1970.
func TimeCell(usec uint64) Cell {
	text := FormatTime(usec)
	if text == "" {
		text = "-"
	}
	return Cell{Text: text, Value: usec}
}

// Column describes a column of a table.
type Column struct {
	Head string
	JSON string // key; Head in lower case when empty
	// JSONOnly columns are left out of the text.
	JSONOnly bool
	Right    bool
}

func (c Column) key() string {
	if c.JSON != "" {
		return c.JSON
	}
	return strings.ToLower(c.Head)
}

// Table is rows under headings, printed as columns or as JSON.
type Table struct {
	Columns []Column
	Rows    [][]Cell
	// Noun names the rows in the footer ("machines").
	Noun string
}

// SortBy orders the rows by the text of the given columns.
func (t *Table) SortBy(columns ...int) {
	sort.SliceStable(t.Rows, func(i, j int) bool {
		for _, c := range columns {
			if a, b := t.Rows[i][c].Text, t.Rows[j][c].Text; a != b {
				return a < b
			}
		}
		return false
	})
}

// Layout says how a table is drawn.
type Layout struct {
	Terminal *Terminal
	Legend   bool // heading and footer
	Full     bool // never shorten
}

// Write draws the table as text.
func (t *Table) Write(w io.Writer, l Layout) error {
	var b strings.Builder
	if len(t.Rows) > 0 || t.Noun == "" {
		t.draw(&b, l)
	}
	if l.Legend && t.Noun != "" {
		if len(t.Rows) > 0 {
			b.WriteString("\n" + itoa(len(t.Rows)) + " " + t.Noun + " listed.\n")
		} else {
			b.WriteString("No " + t.Noun + ".\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *Table) draw(b *strings.Builder, l Layout) {
	var shown []int
	for i, c := range t.Columns {
		if !c.JSONOnly {
			shown = append(shown, i)
		}
	}
	widths := make([]int, len(shown))
	for n, i := range shown {
		if l.Legend {
			widths[n] = Width(t.Columns[i].Head)
		}
		for _, row := range t.Rows {
			for line := range strings.SplitSeq(cellText(row[i]), "\n") {
				widths[n] = max(widths[n], Width(line))
			}
		}
	}
	if l.Terminal.OutTTY && !l.Full {
		shrink(widths, l.Terminal.Width)
	}
	if l.Legend {
		for n, i := range shown {
			if n > 0 {
				b.WriteString(l.Terminal.Paint(StyleUnderline, " "))
			}
			last := n == len(shown)-1
			b.WriteString(drawCell(l.Terminal, t.Columns[i].Head, StyleUnderline, widths[n], t.Columns[i].Right, last))
		}
		b.WriteByte('\n')
	}
	for _, row := range t.Rows {
		t.drawRow(b, l, row, shown, widths)
	}
}

func (t *Table) drawRow(b *strings.Builder, l Layout, row []Cell, shown, widths []int) {
	lines := 1
	for _, i := range shown {
		lines = max(lines, 1+strings.Count(row[i].Text, "\n"))
	}
	for line := range lines {
		end := len(shown) - 1 // the last column with something in it
		for end > 0 && line > strings.Count(row[shown[end]].Text, "\n") {
			end--
		}
		for n, i := range shown[:end+1] {
			if n > 0 {
				b.WriteByte(' ')
			}
			text, style := "", StyleNone
			if parts := strings.Split(cellText(row[i]), "\n"); line < len(parts) {
				text, style = parts[line], row[i].Style
				if row[i].Text == "" {
					style = l.Terminal.Grey()
				}
			}
			b.WriteString(drawCell(l.Terminal, text, style, widths[n], t.Columns[i].Right, n == end))
		}
		b.WriteByte('\n')
	}
}

func cellText(c Cell) string {
	if c.Text == "" {
		return "-"
	}
	return c.Text
}

func drawCell(t *Terminal, text string, style Style, width int, right, last bool) string {
	text = Ellipsize(text, width)
	pad := strings.Repeat(" ", width-Width(text))
	painted := t.Color && style != StyleNone
	switch {
	case right:
		text = pad + text
	case last && !painted:
	case style == StyleNone || style == StyleUnderline || style == t.Grey():
		text += pad
	default:
		return t.Paint(style, text) + pad
	}
	return t.Paint(style, text)
}

// shrink takes columns away, from the widest first in proportion, until the
// table fits.
func shrink(widths []int, room int) {
	room -= len(widths) - 1
	total := 0
	for _, w := range widths {
		total += w
	}
	const least = 3
	for total > room {
		// The widest gives first, so narrow columns stay whole.
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			return
		}
		widths[widest]--
		total--
	}
}
