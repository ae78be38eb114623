package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// JSONMode is a way to lay out JSON.
type JSONMode int

// The layouts that --output= knows.
const (
	JSONOff JSONMode = iota
	JSONShort
	JSONPretty
	JSONSSE // one server-sent event
	JSONSeq // RFC 7464
)

// WriteJSON prints the table as an array of objects.
func (t *Table) WriteJSON(w io.Writer, mode JSONMode, term *Terminal) error {
	var b strings.Builder
	switch mode {
	case JSONSSE:
		b.WriteString("data: ")
	case JSONSeq:
		b.WriteByte(0x1e)
	}
	pretty := mode == JSONPretty
	b.WriteByte('[')
	for r, row := range t.Rows {
		if r > 0 {
			b.WriteByte(',')
		}
		if pretty {
			b.WriteString("\n\t")
		}
		b.WriteByte('{')
		for i, column := range t.Columns {
			if i > 0 {
				b.WriteByte(',')
			}
			if pretty {
				b.WriteString("\n\t\t")
			}
			b.WriteString(jsonString(term, column.key()))
			if pretty {
				b.WriteByte(' ')
			}
			b.WriteByte(':')
			if pretty {
				b.WriteByte(' ')
			}
			b.WriteString(jsonValue(term, row[i].Value))
		}
		if pretty {
			b.WriteString("\n\t")
		}
		b.WriteByte('}')
	}
	if pretty && len(t.Rows) > 0 {
		b.WriteByte('\n')
	}
	b.WriteString("]\n")
	if mode == JSONSSE {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func jsonString(term *Terminal, s string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	// A string always encodes.
	_ = encoder.Encode(s)
	quoted := strings.TrimSuffix(b.String(), "\n")
	return `"` + term.Paint(StyleText, quoted[1:len(quoted)-1]) + `"`
}

func jsonValue(term *Terminal, value any) string {
	switch v := value.(type) {
	case nil:
		return term.Paint(StyleBold, "null")
	case bool:
		return term.Paint(StyleBold, strconv.FormatBool(v))
	case uint64:
		return term.Paint(StyleNumber, strconv.FormatUint(v, 10))
	case uint32:
		return term.Paint(StyleNumber, strconv.FormatUint(uint64(v), 10))
	case float64:
		return term.Paint(StyleNumber, strconv.FormatFloat(v, 'g', -1, 64))
	}
	return jsonString(term, fmt.Sprint(value))
}

func itoa(n int) string { return strconv.Itoa(n) }
