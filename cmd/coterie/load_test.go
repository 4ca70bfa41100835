package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/coteriedb/coterie"
)

// TestLoad runs the scripts in testdata. A script's input is lines of flags ("--x=y"), variables ("ETCD_X=y") and,
// after a line "file:", a configuration file, which ETCD_CONFIG_FILE then names. The output is what differs from the
// defaults, what the log is told, and errors.
func TestLoad(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata", "load"), func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			file := filepath.Join(t.TempDir(), "coterie.yaml")
			args, environ, yaml := scriptInput(d.Input)
			if yaml != "" {
				if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
					t.Fatal(err)
				}
				environ = append(environ, "ETCD_CONFIG_FILE="+file)
			}
			s, notes, err := load(args, environ)
			return strings.ReplaceAll(loaded(s, notes, err), file, "FILE")
		})
	})
}

func scriptInput(input string) (args, environ []string, yaml string) {
	head, yaml, _ := strings.Cut("\n"+input, "\nfile:\n")
	for line := range strings.Lines(head) {
		switch line = strings.TrimSpace(line); {
		case line == "":
		case strings.HasPrefix(line, "ETCD"):
			environ = append(environ, line)
		default:
			args = append(args, line)
		}
	}
	return args, environ, yaml
}

func loaded(s *settings, notes []*note, err error) string {
	var b strings.Builder
	switch {
	case errors.Is(err, flag.ErrHelp):
		return "help\n"
	case err != nil:
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(&b, "error: %s\n", line)
		}
		return b.String()
	case s.showVersion:
		return "version\n"
	}
	defaults := newSettings()
	differences(&b, "", reflect.ValueOf(defaults.config), reflect.ValueOf(s.config))
	differences(&b, "log.", reflect.ValueOf(defaults.log), reflect.ValueOf(s.log))
	for _, n := range notes {
		fmt.Fprintf(&b, "%v: %s", n.level, n.message)
		for _, f := range n.fields {
			fmt.Fprintf(&b, " %s=%s", f.Key, f.String)
		}
		fmt.Fprintln(&b)
	}
	if b.Len() == 0 {
		return "defaults\n"
	}
	return b.String()
}

// differences prints the fields of a struct that are not as they were.
func differences(b *strings.Builder, prefix string, was, is reflect.Value) {
	for i := range is.NumField() {
		name := prefix + is.Type().Field(i).Name
		old, now := was.Field(i), is.Field(i)
		switch {
		case now.Kind() == reflect.Struct:
			differences(b, name+".", old, now)
		case fmt.Sprint(old) != fmt.Sprint(now):
			fmt.Fprintf(b, "%s = %v\n", name, now)
		}
	}
}

// TestEveryOptionIsRight sets every option to a value that is not its default, as flag, variable and key, and
// requires that it changes exactly one field, or that it is refused by name, or that the log hears of it.
func TestEveryOptionIsRight(t *testing.T) {
	changes := make(map[string]string) // field: option
	for _, o := range options(newSettings()) {
		if o.section == obsolete || o.name == "config-file" || o.name == "version" {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			value := otherValue(t, &o)
			s := newSettings()
			opts := options(s)
			i := slices.IndexFunc(opts, func(p option) bool { return p.name == o.name && p.from == o.from })
			if err := opts[i].value.Set(value); err != nil {
				t.Fatalf("%q: %v", value, err)
			}
			var b strings.Builder
			defaults := newSettings()
			differences(&b, "", reflect.ValueOf(defaults.config), reflect.ValueOf(s.config))
			differences(&b, "log.", reflect.ValueOf(defaults.log), reflect.ValueOf(s.log))
			changed := strings.Count(b.String(), "\n")
			n, err := verdict(&opts[i], "--"+o.name)
			switch o.support {
			case supported:
				if o.name == "logger" { // there is only one
					return
				}
				want := 1
				if o.name == "feature-gates" {
					want = 2
				}
				if changed != want || n != nil || err != nil {
					t.Errorf("changes %q, note %v, error %v", b.String(), n, err)
				}
				for line := range strings.Lines(b.String()) {
					field, _, _ := strings.Cut(line, " ")
					if other := changes[field]; other != "" {
						t.Errorf("sets %s, as does %s", field, other)
					}
					changes[field] = o.name
				}
			case noEffect:
				if changed != 0 || n == nil || err != nil {
					t.Errorf("changes %q, note %v, error %v", b.String(), n, err)
				}
			case refused:
				if err == nil || !strings.Contains(err.Error(), "--"+o.name+" is not supported yet") {
					t.Errorf("not refused: %v", err)
				}
			}
			if err := opts[i].value.Set(opts[i].def); err != nil && opts[i].def != "" {
				t.Errorf("its own default %q is not accepted: %v", opts[i].def, err)
			}
			if n, err := verdict(&opts[i], ""); n != nil || err != nil {
				t.Errorf("its default is not accepted: %v, %v", n, err)
			}
		})
	}
	// All that a Config can say can be said by an option, but for what is a Go value.
	for i := range reflect.TypeFor[coterie.Config]().NumField() {
		f := reflect.TypeFor[coterie.Config]().Field(i)
		if f.Type.Kind() == reflect.Struct || f.Name == "Logger" || !f.IsExported() {
			continue
		}
		if changes[f.Name] == "" {
			t.Errorf("no option sets Config.%s", f.Name)
		}
	}
}

// otherValue is a value that o takes and that is not its default.
func otherValue(t *testing.T, o *option) string {
	switch v := o.value.(type) {
	case *scalar[string]:
		for _, s := range []string{"other", "existing", "gone", "zap", coterie.TransportGRPCGo} {
			if _, err := v.parse(s); err == nil {
				return s
			}
		}
	case *scalar[bool]:
		return fmt.Sprint(o.def == "false")
	case *scalar[[]string]:
		return "http://other:1"
	case *featureGates:
		return "InitialCorruptCheck=true,CompactHashCheck=true"
	default:
		if v.(interface{ fileForm() fileForm }).fileForm() == fileDuration {
			return "7m"
		}
		return "777"
	}
	t.Fatalf("no other value for %s", o.name)
	return ""
}

func TestReferenceIsUpToDate(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "flags.md")
	var b strings.Builder
	printReference(&b)
	if os.Getenv("COTERIE_WRITE_DOCS") != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Error("docs/flags.md is not what the options say: run \"make docs\"")
	}
}

func TestHelpHasEveryFlag(t *testing.T) {
	var b strings.Builder
	printHelp(&b)
	for _, o := range options(newSettings()) {
		if o.from == fileOnly || o.section == obsolete {
			continue
		}
		if n := strings.Count(b.String(), "  --"+o.name+" '"); n != 1 {
			t.Errorf("--%s is in the help %d times", o.name, n)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"data-dir", "wal-dir", "watch-progress-notify-interval", "name"}
	for word, want := range map[string]string{
		"data-dri": "data-dir", "datadir": "data-dir", "DATA-DIR": "data-dir", "walldir": "wal-dir", "nmae": "name",
		"experimental-watch-progress-notify-interval": "watch-progress-notify-interval", "quota": "", "": "",
	} {
		if got := nearest(word, words); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("name: a\nclient-transport-security: {cert-file: x}\n"))
	f.Add([]byte("heartbeat-interval: 1e3\nwatch-progress-notify-interval: -9223372036854775808\n"))
	f.Add([]byte("log-outputs: [a, [b]]\nsocket-options:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newSettings()
		if _, err := applyFile(s, data); err == nil {
			_, _, _ = finish(s, nil) // neither may panic
		}
	})
}

func FuzzFlags(f *testing.F) {
	f.Add("--name=a\x00-pre-vote\x00--initial-cluster=a=http://h:1")
	f.Add("--feature-gates=A=b,\x00--quota-backend-bytes=-0x1")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "config-file") {
			return // it would read files
		}
		s, _, err := load(strings.Split(line, "\x00"), nil)
		if err == nil && !s.showVersion {
			if err := s.config.Validate(); err != nil {
				t.Errorf("loaded, but invalid: %v", err)
			}
		}
	})
}

// TestEveryFlagOfEtcd compares the options with etcd's own, which testdata/etcd-flags.txt lists.
func TestEveryFlagOfEtcd(t *testing.T) {
	// Where etcd's default stands for the value that ours is.
	standsFor := map[string]string{
		"initial-cluster":                "default=http://localhost:2380",
		"compaction-batch-limit":         "0",
		"compaction-sleep-interval":      "0s",
		"watch-progress-notify-interval": "0s",
	}
	ours := make(map[string]*option)
	opts := options(newSettings())
	for i := range opts {
		if opts[i].from != fileOnly {
			ours[opts[i].name] = &opts[i]
		}
	}
	data, err := os.ReadFile(filepath.Join("testdata", "etcd-flags.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		name, def, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok {
			continue
		}
		o := ours[name]
		if o == nil {
			t.Errorf("no --%s", name)
			continue
		}
		if o.def != def && standsFor[name] != def {
			t.Errorf("--%s has the default %q, etcd's is %q", name, o.def, def)
		}
	}
}
