package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// section is a generated part of the page. Each is written by a run of its own and leaves the others as they are.
type section struct {
	name       string // of the file with the raw numbers
	begin, end string // the lines that mark it
}

func newSection(name string) section {
	return section{
		name:  name,
		begin: "<!-- begin: " + name + ", written by bench/compare, do not edit -->",
		end:   "<!-- end: " + name + ", written by bench/compare -->",
	}
}

// publish writes what was found into its section of a page, and beside the page the numbers that it was made of, and a chart.
func (s section) publish(page string, found findings) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	updated, err := s.replace(string(old), found.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	base := filepath.Join(strings.TrimSuffix(page, filepath.Ext(page)), s.name)
	if err := writeJSON(base+".json", found); err != nil {
		return err
	}
	if t, ok := found.(*table); ok {
		if err := os.WriteFile(base+".svg", []byte(t.chart()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(page, []byte(updated), 0o644)
}

func (s section) replace(page, text string) (string, error) {
	before, rest, ok := strings.Cut(page, s.begin)
	_, after, ok2 := strings.Cut(rest, s.end)
	if !ok || !ok2 {
		return "", fmt.Errorf("the lines %q and %q must mark the generated section", s.begin, s.end)
	}
	return before + s.begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + s.end + after, nil
}

func writeJSON(path string, numbers any) error {
	data, err := json.MarshalIndent(numbers, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
