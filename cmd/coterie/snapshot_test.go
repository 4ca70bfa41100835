package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie"
)

func TestSnapshotUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"snapshot save", "requires exactly one argument"},
		{"snapshot save --endpoints a:1,b:1 x", "of one: choose it"},
		{"snapshot save --user root x", "needs a password"},
		{"snapshot status", "requires exactly one argument"},
		{"snapshot status FILE -w protobuf", "unsupported output format"},
		{"snapshot restore a b", "requires exactly one argument"},
		{"snapshot restore FILE --mark-compacted", "--mark-compacted required"},
		{"snapshot restore FILE --bump-revision 3", "--mark-compacted required"},
		{"snapshot restore FILE --initial-cluster=", "must name the members"},
		{"migrate", "--from and --to are needed"},
		{"migrate --from FILE --to x --uncommitted perhaps", "can be keep or drop"},
		{"migrate --from FILE --to x --name a", "--name is about a new cluster"},
		{"migrate --from FILE --to x --to-etcd", "moves a data directory"},
		{"migrate --from DIR --to x --to-etcd --disable-auth", "are about data of etcd's"},
		{"migrate --from DIR --to x --skip-hash-check", "about snapshot files"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			root := rootCommand()
			root.SetOut(io.Discard)
			root.SetArgs(strings.Fields(strings.NewReplacer("FILE", file, "DIR", filepath.Dir(file)).Replace(tt.args)))
			err := root.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.As(err, new(usageError)) {
				t.Errorf("got %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

func TestStatusFormats(t *testing.T) {
	s := &coterie.SnapshotStatus{Hash: 0xabc123, Revision: 7, Keys: 3, Size: 24576, Version: "3.7.0"}
	for format, want := range map[string]string{
		"simple": "abc123, 7, 3, 25 kB, 3.7.0\n",
		"fields": "\"Hash\" : 11256099\n\"Revision\" : 7\n\"Keys\" : 3\n\"Size\" : 24576\n\"Version\" : 3.7.0\n",
		"json":   `{"hash":11256099,"revision":7,"totalKey":3,"totalSize":24576,"version":"3.7.0"}` + "\n",
		"table": `┌────────┬──────────┬────────────┬────────────┬─────────┐
│  HASH  │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │
├────────┼──────────┼────────────┼────────────┼─────────┤
│ abc123 │        7 │          3 │      25 kB │   3.7.0 │
└────────┴──────────┴────────────┴────────────┴─────────┘
`,
	} {
		var out bytes.Buffer
		if err := statusFormats[format](&out, s); err != nil || out.String() != want {
			t.Errorf("%s, %v:\n%s\nwant:\n%s", format, err, &out, want)
		}
	}
}

func TestVariablesOfTheClient(t *testing.T) {
	t.Setenv("ETCDCTL_ENDPOINTS", "a:1")
	t.Setenv("ETCDCTL_DIAL_TIMEOUT", "3s")
	var c clientFlags
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.add(f)
	if err := ctlVariables(f); err != nil || c.spec.Endpoints[0] != "a:1" || c.spec.DialTimeout.Seconds() != 3 {
		t.Errorf("endpoints %v, timeout %v, %v", c.spec.Endpoints, c.spec.DialTimeout, err)
	}
	t.Setenv("ETCDCTL_DIAL_TIMEOUT", "soon")
	f = pflag.NewFlagSet("", pflag.ContinueOnError)
	c.add(f)
	if err := f.Parse([]string{"--endpoints", "b:1"}); err != nil {
		t.Fatal(err)
	}
	err := ctlVariables(f)
	for _, want := range []string{"--endpoints and the variable ETCDCTL_ENDPOINTS are both set", "ETCDCTL_DIAL_TIMEOUT"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

func TestReceive(t *testing.T) {
	pieces := []*pb.SnapshotResponse{{Blob: []byte("ab"), RemainingBytes: 2, Version: "3.7.0"}, {Blob: []byte("cd"), Version: "3.7.0"}}
	next := func(end error) func() (*pb.SnapshotResponse, error) {
		i := 0
		return func() (*pb.SnapshotResponse, error) {
			if i++; i <= len(pieces) {
				return pieces[i-1], nil
			}
			return nil, end
		}
	}
	var out bytes.Buffer
	if version, err := receive(next(io.EOF), &out); err != nil || version != "3.7.0" || out.String() != "abcd" {
		t.Errorf("%q of version %s, %v", &out, version, err)
	}
	if _, err := receive(next(io.ErrUnexpectedEOF), io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}
