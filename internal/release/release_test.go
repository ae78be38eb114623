package release

import (
	"strings"
	"testing"
)

// TestText reads it as callers do: awk's NR==1 {print $2}, and mkosi's third word.
func TestText(t *testing.T) {
	text := Text("machine-spawn", "1.0")
	words := strings.Fields(text)
	if words[0] != "systemd" || words[1] != "261" || !strings.HasPrefix(strings.Trim(words[2], "()"), "261") {
		t.Error(text)
	}
	if !strings.HasSuffix(text, "\nmachine-spawn 1.0\n") {
		t.Error(text)
	}
}
