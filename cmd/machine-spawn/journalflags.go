package main

import (
	"errors"
	"strconv"

	"machined/spawn"
	"machined/spawn/settings"
)

// journalFlags are those of the sink for the machine's journal.
func (c *commandLine) journalFlags() {
	sink := &c.opts.JournalSink
	c.value("forward-journal", "", "FILE|DIR", "Forward the container's journal to the host", func(s string) error {
		if s == "" {
			return errors.New("empty argument")
		}
		return absolute(&sink.Path)(s)
	})
	limit := func(name, usage string, parse func(string) (uint64, error), arg string) {
		c.value("forward-journal-"+name, "", arg, usage, func(s string) error {
			n, err := parse(s)
			if err == nil {
				sink.Limits = append(sink.Limits, spawn.SinkLimit(name, n))
			}
			return err
		})
	}
	number := func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 32) }
	limit("max-use", "Maximum disk space for forwarded journals", settings.ParseSize, "BYTES")
	limit("keep-free", "Disk space to keep free of forwarded journals", settings.ParseSize, "BYTES")
	limit("max-file-size", "Maximum size of a forwarded journal file", settings.ParseSize, "BYTES")
	limit("max-files", "Maximum number of forwarded journal files", number, "N")
}
