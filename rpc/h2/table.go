package h2

// table finds the open streams of a connection. Their ids grow, so a stream's place is given by
// its id, as long as the stream that had that place before has ended; else a map has it.
type table struct {
	slots []*Stream // by half the id; as many as a power of two
	more  map[uint32]*Stream
	n     int
}

const (
	minSlots = 16
	maxSlots = 4096
)

func (t *table) slot(id uint32) **Stream { return &t.slots[int(id>>1)&(len(t.slots)-1)] }

func (t *table) get(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	if s := *t.slot(id); s != nil && s.id == id {
		return s
	}
	return t.more[id]
}

func (t *table) put(s *Stream) {
	if t.n++; t.slots == nil {
		t.slots = make([]*Stream, minSlots)
	}
	if *t.slot(s.id) != nil && t.n > len(t.slots)/2 && len(t.slots) < maxSlots {
		t.grow()
	}
	t.place(s)
}

func (t *table) place(s *Stream) {
	if at := t.slot(s.id); *at == nil {
		*at = s
		return
	}
	if t.more == nil {
		t.more = map[uint32]*Stream{}
	}
	t.more[s.id] = s
}

func (t *table) grow() {
	old := *t
	t.slots, t.more = make([]*Stream, 4*len(old.slots)), nil
	old.each(t.place)
}

func (t *table) remove(s *Stream) {
	t.n--
	if at := t.slot(s.id); *at == s {
		*at = nil
		return
	}
	delete(t.more, s.id)
}

// each calls f for all streams. It must not change the table.
func (t *table) each(f func(*Stream)) {
	for _, s := range t.slots {
		if s != nil {
			f(s)
		}
	}
	for _, s := range t.more {
		f(s)
	}
}
