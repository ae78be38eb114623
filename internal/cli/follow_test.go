package cli

import (
	"testing"
	"time"
)

func TestAnnounced(t *testing.T) {
	for line, want := range map[string]uint64{
		"Downloading 512B for http://x/y.": 512, "Downloading 2.5M for http://x/Downloading 1G for.": 2621440,
		"Downloading it": 0, "Got 2% of http://x/y. 2min 43s left at 2.6M/s.": 0, "": 0,
	} {
		if got := announced(line); got != want {
			t.Errorf("%q: got %d, want %d", line, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	for _, test := range []struct {
		fraction float64
		size     uint64
		elapsed  time.Duration
		want     string
	}{
		{0.5, 8 << 20, 2 * time.Second, " 2M/s "}, {0.5, 0, 2 * time.Second, ""}, {0.5, 8 << 20, 100 * time.Millisecond, ""},
	} {
		if got := rate(test.fraction, test.size, test.elapsed); got != test.want {
			t.Errorf("rate(%v, %d, %v) = %q, want %q", test.fraction, test.size, test.elapsed, got, test.want)
		}
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"http://h/a/b.tar": "b.tar", "https://h:8/b.tar?x=/y#/z": "b.tar", "file:///a/b.tar": "b.tar", "file:/a/b.tar": "b.tar",
		"file://localhost/a/b.tar/": "b.tar", "http://h/": "", "http://h": "", "http://h?x/y": "", "file:///": "",
		"http:/a": "invalid", "file:a": "invalid", "file://a": "invalid", "ftp://h/a": "invalid", "http://": "invalid", "": "invalid", "/a": "invalid",
	} {
		got := "invalid"
		if rest, ok := afterScheme(url); ok {
			got = lastPart(rest)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", url, got, want)
		}
	}
}
