package main

import (
	"strings"
	"testing"
)

func TestSummarise(t *testing.T) {
	for _, tc := range []struct {
		name                    string
		in                      string
		passed, failed, skipped int
	}{
		{"nothing", "", 0, 0, 0},
		{"one of each", `{"Action":"pass","Package":"p","Test":"A"}
{"Action":"fail","Package":"p","Test":"B"}
{"Action":"skip","Package":"p","Test":"C"}
{"Action":"fail","Package":"p"}`, 1, 1, 1},
		{"a package that does not build", `{"Action":"build-output","Output":"x.go:1: no\n"}
{"Action":"fail","Package":"p"}`, 0, 1, 0},
		{"noise", "not json\n" + `{"Action":"pass","Package":"p","Test":"A"}`, 1, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := summarise(strings.NewReader(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if res.passed != tc.passed || res.failed != tc.failed || res.skipped != tc.skipped {
				t.Errorf("got %d passed, %d failed, %d skipped, want %d, %d, %d",
					res.passed, res.failed, res.skipped, tc.passed, tc.failed, tc.skipped)
			}
		})
	}
}
