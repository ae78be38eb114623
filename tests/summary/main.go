// Command summary reads the events of `go test -json` (see "go doc test2json") and prints what a
// person wants to know: a line per package, the whole output of what failed, and how many tests
// ran. It owns no test and decides nothing: the exit status is 1 exactly when an event says "fail".
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

type result struct {
	passed, failed, skipped int
	lines                   []string
}

func main() {
	total := flag.Bool("total", false, "print the counts alone")
	flag.Parse()
	res, err := summarise(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if *total {
		fmt.Printf("%d passed, %d failed, %d skipped\n", res.passed, res.failed, res.skipped)
	} else {
		for _, line := range res.lines {
			fmt.Println(line)
		}
	}
	if res.failed > 0 || res.passed == 0 {
		os.Exit(1)
	}
}

// summarise counts tests; a package that fails without a failing test (it did not build, or it
// died) counts as one failure.
func summarise(r io.Reader) (result, error) {
	var res result
	output := map[string][]string{}
	failedTests := map[string]int{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return res, nil
		}
		if err != nil && err != io.EOF {
			return res, err
		}
		var ev event
		if json.Unmarshal(line, &ev) != nil {
			res.lines = append(res.lines, strings.TrimRight(string(line), "\n"))
			continue
		}
		key := ev.Package + " " + ev.Test
		switch ev.Action {
		case "output", "build-output":
			output[key] = append(output[key], ev.Output)
		case "pass", "fail", "skip":
			res.count(ev, output[key], failedTests)
			delete(output, key)
		}
	}
}

func (res *result) count(ev event, output []string, failedTests map[string]int) {
	if ev.Test == "" {
		switch {
		case ev.Action == "fail" && failedTests[ev.Package] == 0:
			res.failed++
			res.lines = append(res.lines, strings.Join(output, ""))
			fallthrough
		case ev.Action == "fail":
			res.lines = append(res.lines, fmt.Sprintf("FAIL %s (%.1fs)", ev.Package, ev.Elapsed))
		case ev.Action == "pass":
			res.lines = append(res.lines, fmt.Sprintf("ok   %s (%.1fs)", ev.Package, ev.Elapsed))
		}
		return
	}
	switch ev.Action {
	case "pass":
		res.passed++
	case "skip":
		res.skipped++
		reason := slices.DeleteFunc(output, func(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "===") })
		res.lines = append(res.lines, "skip "+ev.Test+": "+strings.Join(strings.Fields(strings.Join(reason, " ")), " "))
	case "fail":
		res.failed++
		failedTests[ev.Package]++
		res.lines = append(res.lines, strings.TrimRight(strings.Join(output, ""), "\n"))
	}
}
