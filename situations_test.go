package coterie_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSituations requires that each situation of docs/situations.md names the tests
// that show it, and that these are there: `dir TestName`, with the file of testdata
// behind a slash if the test runs scripts.
func TestSituations(t *testing.T) {
	page, err := os.ReadFile("docs/situations.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9/.]+) (Test[A-Za-z0-9]+)(?:/([a-z0-9.-]+))?`")
	rows := 0
	for n, line := range strings.Split(string(page), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Situation") {
			continue
		}
		rows++
		named := name.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("line %d names no test", n+1)
		}
		for _, m := range named {
			if dir, test, script := m[1], m[2], m[3]; !declares(t, dir, test) {
				t.Errorf("line %d: %s has no %s", n+1, dir, test)
			} else if script != "" && !hasScript(t, dir, script) {
				t.Errorf("line %d: %s has no %s in testdata", n+1, dir, script)
			}
		}
	}
	if rows < 20 {
		t.Errorf("only %d situations found", rows)
	}
}

// declares tells whether a test is declared in a directory.
func declares(t *testing.T, dir, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+test+"(t *testing.T)") {
			return true
		}
	}
	return false
}

// hasScript tells whether the testdata of a directory has a file of the name.
func hasScript(t *testing.T, dir, script string) bool {
	t.Helper()
	for _, pattern := range []string{filepath.Join(dir, "testdata", script), filepath.Join(dir, "testdata", "*", script)} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			return true
		}
	}
	return false
}
