package coterie_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/coteriedb/coterie"

// mayImport states the architecture: for each package, which of Coterie's own packages it may import. Imports point one
// way, from rpc and api through consensus and machine to storage; what must travel back is returned, or published as a
// value. Relaxing a line is a design decision and is explained in the commit that does it. "…/*" is all packages below.
var mayImport = map[string][]string{
	// How bytes get to the disk, and the formats there. None of these knows another.
	"storage/direct":   {},
	"storage/engine":   {"storage/direct"},
	"storage/wal":      {"storage/direct"},
	"storage/etcdfile": {},
	"storage/etcdlog":  {},

	// The form of messages.
	"wire": {},

	// What is applied. The log is not its business: it is given commands.
	"machine":       {"machine/*", "storage/engine", "storage/etcdfile", "wire"},
	"machine/auth":  {"storage/engine"},
	"machine/lease": {"storage/engine"},
	"machine/mvcc":  {"storage/engine", "machine/lease", "wire"},
	"machine/watch": {"machine/mvcc", "wire"},

	// How members agree. It moves bytes and knows nothing of keys, so it sees the machine but none of its parts.
	"consensus": {"machine", "storage/wal"},

	// What a member keeps on its disk, and the machine on it as consensus drives it.
	"replica": {"machine", "storage/direct", "storage/engine", "storage/wal"},

	// What members say to one another. It carries messages and files, and knows neither raft's state nor the machine's.
	"peer": {"storage/direct"},

	// Who the first members are. What it finds is a text.
	"discovery": {},

	// Who holds other data than the others. It is given hashes.
	"guard": {},

	// How whole states come from etcd and go there. Where a member keeps its data is the root's to say.
	"recovery": {"machine", "machine/*", "storage/*", "wire"},

	// The leader's clock and habits. They propose through functions that they are given.
	"lessor":    {"machine/lease"},
	"compactor": {},

	// The way in. rpc knows no service, and its HTTP/2 no gRPC; api has no state.
	"rpc":         {"rpc/h2"},
	"rpc/h2":      {},
	"api":         {"rpc", "consensus", "lessor", "machine", "machine/*", "wire"},
	"api/httpapi": {"api", "rpc"},

	// All wiring. Nothing below imports it.
	".": {"api", "api/*", "compactor", "consensus", "peer", "discovery", "guard", "lessor", "machine", "machine/*", "recovery", "replica", "rpc", "storage/*", "wire"},

	// Members on a clock, a network and disks of its own. What it runs is everything below the wiring.
	"sim": {"consensus", "lessor", "machine", "machine/*", "peer", "replica", "storage/engine", "storage/wal"},

	// For tests and benchmarks.
	"internal/footprint": {},
	"internal/loopback":  {},

	// Programs. The load generator talks to any server that speaks etcd's API, so it knows none.
	"bench":         {"bench/light"},
	"bench/compare": {"bench", "bench/*", "internal/loopback"},
	"bench/light":   {},
	"cmd/coterie":   {".", "bench"},
}

// mayBeUsedBy states which of Coterie's packages may import an outside package, or any below it.
var mayBeUsedBy = []struct {
	outside, why string
	users        []string
}{
	{"go.etcd.io/etcd/server", "etcd's server is not a part of Coterie; tests against it are a module of their own", nil},
	{"go.etcd.io/etcd/etcdctl", "etcdctl is a command", []string{"cmd/*"}},
	{"github.com/spf13", "flags belong to commands", []string{"bench/compare", "cmd/*"}},
	{"go.etcd.io/etcd/client/v3", "the server is not its own client; the root package hands one out, and discovery asks another cluster",
		[]string{"bench", "bench/*", "cmd/*", "discovery", "."}},
	{"go.etcd.io/raft/v3", "raft is driven by consensus, stored by the log and carried by peer", []string{"consensus", "peer", "recovery", "sim", "storage/etcdlog", "storage/wal", "."}},
	{"go.etcd.io/bbolt", "bbolt is the format of etcd's snapshot files", []string{"storage/etcdfile"}},
	{"google.golang.org/grpc", "only the way in knows how commands arrive",
		[]string{"rpc", "api", "api/*", ".", "bench", "bench/*", "cmd/*"}},
	{"net/http", "only the way in, and that between members, know how commands arrive",
		[]string{"rpc", "api", "api/*", "peer", ".", "bench", "bench/*", "cmd/*"}},
	{"math/rand", "what is applied is deterministic; watchers are not part of it", []string{"api", "bench", "consensus", "internal/loopback", "lessor", "machine/watch", "peer", "sim"}},
	{"github.com/prometheus/client_golang/prometheus/promauto", "it registers in a global", nil},
}

type listed struct {
	ImportPath, Name, Doc, Dir                        string
	GoFiles, Imports, TestImports, XTestImports, Deps []string
}

// dir is the package's directory in the module, "." for the root.
func (p *listed) dir() string { return inModule(p.ImportPath) }

func inModule(importPath string) string {
	if importPath == module {
		return "."
	}
	dir, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return dir
}

func packages(t *testing.T) []*listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Dir,GoFiles,Imports,TestImports,XTestImports,Deps", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []*listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(listed)
		if err := dec.Decode(p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func within(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		below, ok := strings.CutSuffix(pattern, "/*")
		return dir == pattern || ok && strings.HasPrefix(dir, below+"/")
	})
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		allowed, ok := mayImport[p.dir()]
		if !ok {
			t.Errorf("%s: say in mayImport what this package may import", p.dir())
		}
		for _, imported := range p.Imports {
			if own := inModule(imported); own != "" && !within(own, allowed) {
				t.Errorf("%s imports %s, which the architecture does not allow", p.dir(), own)
			}
			for _, rule := range mayBeUsedBy {
				if (imported == rule.outside || strings.HasPrefix(imported, rule.outside+"/")) && !within(p.dir(), rule.users) {
					t.Errorf("%s imports %s: %s", p.dir(), imported, rule.why)
				}
			}
		}
		for _, imported := range slices.Concat(p.Deps, p.TestImports, p.XTestImports) {
			if strings.HasPrefix(imported, "go.etcd.io/etcd/server/") {
				t.Errorf("%s depends on %s, if only through others or in tests", p.dir(), imported)
			}
		}
	}
}

// TestDescriptions requires that each package says what it owns, and that none is named after nothing.
func TestDescriptions(t *testing.T) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "base", "misc", "shared", "lib"}
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.dir())
		}
		for _, element := range strings.Split(path.Join(p.dir(), p.Name), "/") {
			if slices.Contains(empty, element) {
				t.Errorf("%s: %q names nothing; where is its content used?", p.dir(), element)
			}
		}
	}
}

// TestNoInit forbids what runs before main: three members in one process share nothing.
func TestNoInit(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s/%s has an init function", p.dir(), name)
				}
			}
		}
	}
}

// TestEveryFieldOfConfigIsUsed holds the promise that no setting is ignored in silence: something reads every field of
// Config and its parts, other than what checks it or gives it its default.
func TestEveryFieldOfConfigIsUsed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	declared, used := make(map[string]bool), make(map[string]bool)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				f := strings.ToLower(n.Name.Name)
				return name != "config.go" || !strings.HasPrefix(f, "validate") && f != "resolved"
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok && name == "config.go" && n.Name.IsExported() {
					for _, field := range s.Fields.List {
						for _, id := range field.Names {
							declared[id.Name] = true
						}
					}
				}
			case *ast.SelectorExpr:
				used[n.Sel.Name] = true
			}
			return true
		})
	}
	if len(declared) < 40 {
		t.Errorf("only %d fields found in config.go", len(declared))
	}
	for name := range declared {
		if !used[name] {
			t.Errorf("nothing reads Config's %s", name)
		}
	}
}

// TestLinks requires that relative links of the documentation lead somewhere, and that docs/README.md leads to every page.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]bool{"docs/README.md": true}
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := filepath.Join(filepath.Dir(page), m[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
			linked[target] = linked[target] || page == "docs/README.md"
		}
	}
	for _, page := range pages {
		if !linked[page] {
			t.Errorf("docs/README.md does not link to %s", page)
		}
	}
}

// TestFuzzTargetsAreListed requires that the table of docs/testing.md names every fuzz target, as often as there are packages
// that have one of its name.
func TestFuzzTargetsAreListed(t *testing.T) {
	page, err := os.ReadFile("docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]int{}
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	for _, p := range packages(t) {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range target.FindAllSubmatch(text, -1) {
				there[string(m[1])]++
			}
		}
	}
	if len(there) < 40 {
		t.Errorf("only %d fuzz targets found", len(there))
	}
	for name, count := range there {
		if got := strings.Count(string(page), "`"+name+"`"); got != count {
			t.Errorf("%s is named %d times in docs/testing.md, and is there in %d packages", name, got, count)
		}
	}
}
