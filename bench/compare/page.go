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

var (
	oneNodeSection      = newSection("one-node", "")
	threeMembersSection = newSection("three-members", "three members, ")
	catchUpSection      = newSection("catch-up", "catch-up, ")
)

func newSection(name, title string) section {
	return section{
		name:  name,
		begin: "<!-- begin: " + title + "written by bench/compare, do not edit -->",
		end:   "<!-- end: " + title + "written by bench/compare -->",
	}
}

// section is the one that a run with these settings writes.
func (s settings) section() section {
	switch {
	case s.catchUp:
		return catchUpSection
	case s.members > 1:
		return threeMembersSection
	}
	return oneNodeSection
}

// publish writes a text into its section of a page, and the numbers that it was made of beside the page.
func (s section) publish(page, text string, numbers any) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	updated, err := s.replace(string(old), text)
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	if err := os.WriteFile(page, []byte(updated), 0o644); err != nil {
		return err
	}
	base := strings.TrimSuffix(page, filepath.Ext(page))
	return writeJSON(filepath.Join(base, s.name+".json"), numbers)
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
