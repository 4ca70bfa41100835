package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestBenchHasEveryWorkload(t *testing.T) {
	var names []string
	for _, c := range benchCommand().Commands() {
		names = append(names, c.Name())
		for _, flag := range []string{"endpoints", "conns", "clients", "duration", "total", "rate", "server-pid", "json"} {
			if c.Flags().Lookup(flag) == nil {
				t.Errorf("%s has no --%s", c.Name(), flag)
			}
		}
	}
	slices.Sort(names)
	if want := "lease-keepalive mixed put range txn watch-fanout watch-latency"; strings.Join(names, " ") != want {
		t.Errorf("workloads %q, want %q", names, want)
	}
}

func TestBenchRefusesBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"put --clients 0":                        "0 clients",
		"put --duration 2h":                      "a duration of 2h",
		"put --key-size 3":                       "keys of 3 bytes",
		"range --consistency x":                  "must be l or s",
		"txn --puts 500":                         "500 puts",
		"mixed --read-ratio 7":                   "a share of reads of 7",
		"watch-fanout --watchers 0":              "0 watchers",
		"watch-latency --clients -1":             "-1 clients",
		"lease-keepalive --clients 999999999999": "999999999999 clients",
		"lease-keepalive --ttl 1ms":              "a time to live of 1ms",
		"put --cacert does-not-exist":            "preparing TLS",
		"put --client heavy":                     "must be grpc or light",
		"put --idle-watchers -1":                 "-1 watchers",
		"put --conns 0 --endpoints 127.0.0.1:1":  "0 connections",
		"put --dial-timeout 1ms --endpoints :::": "no answer from :::",
	} {
		cmd := benchCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(args))
		cmd.SetOut(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want an error with %q, have %v", args, want, err)
		}
	}
}

func TestBenchRunKeepsSecretsOutOfReports(t *testing.T) {
	b := benchPut()
	cmd := b.command()
	if err := cmd.ParseFlags([]string{"--user", "root:secret", "--password", "secret", "--clients", "7"}); err != nil {
		t.Fatal(err)
	}
	values := flagValues(cmd.Flags())
	if values["clients"] != "7" {
		t.Errorf("--clients 7 is remembered as %q", values["clients"])
	}
	for name, v := range values {
		if strings.Contains(v, "secret") {
			t.Errorf("--%s keeps %q", name, v)
		}
	}
	if user, password := b.credentials(); user != "root:secret" || password != "secret" {
		t.Errorf("with --password: %q and %q", user, password)
	}
	b.target.Password = ""
	if user, password := b.credentials(); user != "root" || password != "secret" {
		t.Errorf("without --password: %q and %q", user, password)
	}
}

func TestBenchUsageErrors(t *testing.T) {
	cmd := benchCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"put", "--clients", "0"})
	if err := cmd.ExecuteContext(t.Context()); !errors.As(err, new(usageError)) {
		t.Errorf("%v is no usage error", err)
	}
}
