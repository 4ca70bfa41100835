package auth

import (
	"cmp"
	"slices"
	"strings"
)

// unbounded is the range end that means no upper bound.
const unbounded = "\x00"

// span is the keys from begin up to, not including, end; an empty end is above
// every key.
type span struct{ begin, end string }

// spans are disjoint, ascending, and do not touch. They hold the union of what
// a role is permitted, so that a check need not look at single permissions.
type spans []span

// validRange tells whether a permission may be granted on [key, rangeEnd).
func validRange(key, rangeEnd []byte) bool {
	if len(key) == 0 {
		return false
	}
	return len(rangeEnd) == 0 || string(rangeEnd) == unbounded || string(key) < string(rangeEnd)
}

func (p permission) span() span { return newSpan(p.key, p.rangeEnd) }

// newSpan translates from etcd's notation: no range end is a single key.
func newSpan(key, rangeEnd string) span {
	switch rangeEnd {
	case "":
		return span{key, key + "\x00"}
	case unbounded:
		return span{key, ""}
	default:
		return span{key, rangeEnd}
	}
}

// compareEnds orders ends of spans.
func compareEnds(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "":
		return 1
	case b == "":
		return -1
	}
	return strings.Compare(a, b)
}

// merge returns the union of ss, which are ascending by begin. It reuses ss.
func (ss spans) merge() spans {
	merged := ss[:0]
	for _, s := range ss {
		if n := len(merged); n > 0 && (merged[n-1].end == "" || s.begin <= merged[n-1].end) {
			if compareEnds(s.end, merged[n-1].end) > 0 {
				merged[n-1].end = s.end
			}
			continue
		}
		merged = append(merged, s)
	}
	return slices.Clip(merged)
}

// around returns the span that key lies in.
func (ss spans) around(key string) (span, bool) {
	i, exact := slices.BinarySearchFunc(ss, key, func(s span, key string) int { return cmp.Compare(s.begin, key) })
	if !exact {
		i-- // the last span that begins below key
	}
	if i < 0 || ss[i].end != "" && ss[i].end <= key {
		return span{}, false
	}
	return ss[i], true
}

// permit decides whether name may do what side selects on [key, rangeEnd).
func (st *state) permit(name string, authRevision uint64, key, rangeEnd []byte, side func(*role) spans) error {
	if !st.enabled {
		return nil
	}
	if authRevision == 0 {
		return ErrUserEmpty
	}
	if authRevision < st.revision {
		return ErrAuthOldRevision
	}
	u := st.user(name)
	if u == nil {
		return ErrPermissionDenied
	}
	if u.has(RootRole) || st.covers(u, newSpan(string(key), string(rangeEnd)), side) {
		return nil
	}
	return ErrPermissionDenied
}

// covers reports whether the spans of the roles of u together cover want. From
// want's begin it goes as far as any role permits, and from there on again, so
// that a range may be pieced together from several roles. Roles are merged
// when they change and users are not: one change touches one role.
func (st *state) covers(u *user, want span, side func(*role) spans) bool {
	at := want.begin
	for {
		end, found := st.reach(u, at, side)
		if !found {
			return false
		}
		if compareEnds(end, want.end) >= 0 {
			return true
		}
		at = end
	}
}

// reach returns the farthest end of the spans around key in the roles of u.
func (st *state) reach(u *user, key string, side func(*role) spans) (end string, found bool) {
	for _, name := range u.roles {
		r := st.role(name)
		if r == nil {
			continue
		}
		if s, ok := side(r).around(key); ok && (!found || compareEnds(s.end, end) > 0) {
			end, found = s.end, true
		}
	}
	return end, found
}
