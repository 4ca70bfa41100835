package main

import (
	"fmt"
	"io"
	"strings"
)

// printHelp lists the flags in etcd's form.
func printHelp(w io.Writer) {
	fmt.Fprint(w, `Usage:

  coterie server [flags]
    Start a server.

  coterie server --config-file FILE
    Start a server, configured by a file alone.

Every flag is also an environment variable: --data-dir is ETCD_DATA_DIR. It is an error to set both.
`)
	section := ""
	for _, o := range options(newSettings()) {
		if o.section == obsolete || o.from == fileOnly {
			continue
		}
		if o.section != section {
			section = o.section
			fmt.Fprintf(w, "\n%s:\n", section)
		}
		fmt.Fprintf(w, "  --%s '%s'\n    %s\n", o.name, shownDefault(&o), o.usage)
		if s := supportText(&o); s != "" {
			fmt.Fprintf(w, "    %s\n", s)
		}
	}
}

func shownDefault(o *option) string {
	if o.show != "" {
		return o.show
	}
	return o.def
}

func supportText(o *option) string {
	switch o.support {
	case noEffect:
		return "No effect: " + o.reason + "."
	case refused:
		return "Not supported yet: " + o.reason + "."
	}
	return ""
}

// printReference writes docs/flags.md.
func printReference(w io.Writer) {
	fmt.Fprint(w, `<!-- Generated from cmd/coterie/options.go by "make docs". Do not edit. -->

# Flags of coterie server

The flags are etcd 3.7's, with etcd's names, meanings and defaults, and two of Coterie's own, `+"`--snapshot-send-rate` and `--transport`"+`; where
a default differs, it is because Coterie's directory has another name. `+"`--data-dir`"+` can be written `+"`-data-dir`"+`, and as the variable `+"`ETCD_DATA_DIR`"+`. Setting
both a flag and its variable is an error, as in etcd. With `+"`--config-file`"+` all others are ignored, as in etcd; the last
column is the key in that file, where it is not the flag's name. Durations in the file are whole nanoseconds.

A flag without effect is accepted and the log says why. A flag that is not supported yet is refused, unless its value is
the default. An unknown flag, or key in the file, is refused. An unknown `+"`ETCD_`"+` variable is logged.
`)
	section := ""
	for _, o := range options(newSettings()) {
		if o.section == obsolete {
			continue
		}
		if o.section != section {
			section = o.section
			fmt.Fprintf(w, "\n## %s\n\n| Flag | Default | Meaning | Supported | Key in the file |\n|---|---|---|---|---|\n", section)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", flagCell(&o), code(shownDefault(&o)), cell(o.usage), cell(supportCell(&o)), fileCell(&o))
	}
}

func flagCell(o *option) string {
	if o.from == fileOnly {
		return "none"
	}
	return code("--" + o.name)
}

func fileCell(o *option) string {
	switch {
	case o.from == flagOnly:
		return "none"
	case o.fileKey() == o.name && o.from == anywhere:
		return ""
	}
	return code(o.fileKey())
}

func supportCell(o *option) string {
	if s := supportText(o); s != "" {
		return s
	}
	return "yes"
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + cell(s) + "`"
}

// cell escapes what would end a cell of a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
