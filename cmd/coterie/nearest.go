package main

import (
	"fmt"
	"strings"
)

// didYouMean ends an error about an unknown word with the known one that is most like it, if any is.
func didYouMean(word string, known []string) string {
	if best := nearest(word, known); best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return ""
}

// nearest returns the known word with the least distance to word, or "" if none is within a third of its length.
// The prefix of etcd's experimental flags is no distance: most of them lost it and kept the rest of their names.
func nearest(word string, known []string) string {
	word = strings.Replace(strings.ToLower(word), "experimental-", "", 1)
	best, least := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, strings.ToLower(k)); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the insertions, deletions and replacements of a byte that lead from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
