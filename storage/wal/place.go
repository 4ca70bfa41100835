package wal

import "slices"

// location says where to find an entry: in which frame of which segment. There
// is one for each entry of the log, so it is kept small: numbers are in units
// of frameAlign, and terms are kept apart.
type location struct {
	sequence uint32 // of the segment, its low bits: fewer are ever alive
	at       uint32
	units    uint32 // of the frame, with its header
}

func locate(s *segment, offset int64, length int) location {
	return location{uint32(s.sequence), uint32(offset / frameAlign), uint32(length / frameAlign)}
}

func (c location) offset() int64 { return int64(c.at) * frameAlign }

func (c location) length() int64 { return int64(c.units) * frameAlign }

// in returns the position of the location's segment in the list.
func (c location) in(segments []*segment) int {
	return int(c.sequence - uint32(segments[0].sequence))
}

// terms are the terms of the entries: where each begins, ascending. An entry
// has the term of the last that begins at or before it.
type terms []position

func (t terms) of(index uint64) uint64 {
	i, found := slices.BinarySearchFunc(t, index, compareIndex)
	if !found {
		i--
	}
	return t[i].term
}

// place notes the term of an entry, and forgets those of the entries after it.
func (t terms) place(index, term uint64) terms {
	i, _ := slices.BinarySearchFunc(t, index, compareIndex)
	t = t[:i]
	if i > 0 && t[i-1].term == term {
		return t
	}
	return append(t, position{index, term})
}

// dropTo forgets the terms that only entries up to index have.
func (t terms) dropTo(index uint64) terms {
	i, found := slices.BinarySearchFunc(t, index+1, compareIndex)
	if !found && i > 0 {
		i--
	}
	return slices.Clone(t[i:])
}

func compareIndex(p position, index uint64) int {
	switch {
	case p.index < index:
		return -1
	case p.index > index:
		return 1
	}
	return 0
}
