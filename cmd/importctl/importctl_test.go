package main

import (
	"os"
	"strings"
	"testing"

	"machined/internal/cli"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), `\-`, "-")
}

// TestManualCoversAll holds manual, help and completion against the tables.
func TestManualCoversAll(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"importctl.1": read(t, "../../man/importctl.1"), "help": commandsHelp + optionsHelp,
		"bash completion": read(t, "../../completions/bash/importctl"),
	}
	for name, text := range texts {
		for _, verb := range cli.TransferVerbs {
			if !strings.Contains(text, verb) {
				t.Errorf("%s does not have the command %s", name, verb)
			}
		}
		for _, option := range options(&cli.Transfers{}) {
			if option.Long != "" && !strings.Contains(text, "--"+option.Long) {
				t.Errorf("%s does not have --%s", name, option.Long)
			}
			if option.Short != 0 && !strings.Contains(text, "-"+string(option.Short)) {
				t.Errorf("%s does not have -%c", name, option.Short)
			}
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	no := false
	for _, test := range []struct {
		args string
		want cli.Transfers
		fail string
	}{
		{args: "-m", want: cli.Transfers{Class: "machine"}},
		{args: "--class=sysext --verify=no", want: cli.Transfers{Class: "sysext", Verify: "no"}},
		{args: "-N -P", want: cli.Transfers{Class: "portable", KeepDownload: &no}},
		{args: "--json=short", want: cli.Transfers{JSON: cli.JSONShort}},
		{args: "-j", want: cli.Transfers{JSON: cli.JSONShort}},
		{args: "--class=x", fail: "Failed to parse --class= parameter: x"},
		{args: "--json=x", fail: "Unknown argument to --json= switch: x"},
		{args: "--keep-download=x", fail: "Failed to parse --keep-download= value: x"},
		{args: "--verify=x", fail: "Failed to parse --verify= setting: x"},
		{args: "--machine=", fail: "Failed to connect to system scope bus via machine transport: Invalid argument"},
	} {
		term := &cli.Terminal{}
		got := cli.Transfers{Terminal: term}
		parser := cli.Options{Program: "importctl", Table: options(&got)}
		_, err := parser.Parse(strings.Fields(test.args))
		if test.fail != "" {
			if err == nil || !strings.HasPrefix(err.Error(), test.fail) {
				t.Errorf("%s: got error %v, want %q", test.args, err, test.fail)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.args, err)
			continue
		}
		if (got.KeepDownload == nil) != (test.want.KeepDownload == nil) || got.KeepDownload != nil && *got.KeepDownload != *test.want.KeepDownload {
			t.Errorf("%s: KeepDownload: got %v, want %v", test.args, got.KeepDownload, test.want.KeepDownload)
		}
		if got.Class != test.want.Class || got.Verify != test.want.Verify || got.JSON != test.want.JSON {
			t.Errorf("%s: got %+v, want %+v", test.args, got, test.want)
		}
	}
}
