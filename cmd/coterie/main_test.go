package main

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestNamesOfEtcdsPrograms(t *testing.T) {
	for line, want := range map[string]string{
		"coterie server --x":     "server --x",
		"/usr/bin/etcd --name a": "server --name a",
		"etcd.exe":               "server",
		"./etcdctl get a":        "ctl get a",
		"coterie":                "",
		"etcd-old --x":           "--x",
	} {
		if got := commandLine(strings.Fields(line)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q becomes %q, want %q", line, got, want)
		}
	}
}

// TestCommands runs commands that end by themselves.
func TestCommands(t *testing.T) {
	version := `^Coterie Version: \S+\netcd Version: 3\.7\.\d+\nGit SHA: \S+\nGo Version: go\S+\nGo OS/Arch: \w+/\w+\n$`
	for _, tt := range []struct {
		args   string
		output string // a pattern
		usage  string // a usage error
	}{
		{args: "--version", output: version},
		{args: "version", output: version},
		{args: "server --version", output: version},
		{args: "server --help", output: `(?s)^Usage:.*\nMember:\n  --name 'default'\n`},
		{args: "", output: `(?s)^Coterie is .*\n  server `},
		{args: "sevrer", usage: `unknown command "sevrer"; did you mean server?`},
		{args: "--nope", usage: "unknown flag: --nope"},
		{args: "server --nope", usage: "unknown flag --nope; did you mean --name?"},
		{args: "server --memory-mlock", usage: "--memory-mlock is not supported yet: memory cannot be locked"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			root := rootCommand()
			var out bytes.Buffer
			root.SetOut(&out)
			root.SetArgs(strings.Fields(tt.args))
			err := root.ExecuteContext(t.Context())
			if got := errorText(err); got != tt.usage || (err != nil) != errors.As(err, new(usageError)) {
				t.Errorf("error %v, want %q", err, tt.usage)
			}
			if !regexp.MustCompile(tt.output).MatchString(out.String()) {
				t.Errorf("output %q does not match %q", &out, tt.output)
			}
		})
	}
}
