package coterie

import (
	"sync"
	"time"
)

// strain tells whether the log's syncs take longer than usual, so that work that can wait makes room: whatever they wait
// for, the disk or the processor, the requests wait for it too.
type strain struct {
	mu     sync.Mutex
	usual  time.Duration // an average of many. Guarded by mu, as all below.
	recent time.Duration // of a few
	worst  time.Duration // the highest that recent was since high was called
	asked  time.Time     // when high was called last
}

const (
	usualOf, recentOf = 256, 16 // syncs, about, that the averages are of
	// What is usual is not learned while somebody asks, and for so long after: it would soon be what it is compared with.
	askedFor = time.Second
)

// observe notes how long a sync took.
func (s *strain) observe(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usual == 0 {
		s.usual, s.recent = d, d
	}
	s.recent += (d - s.recent) / recentOf
	s.worst = max(s.worst, s.recent)
	if time.Since(s.asked) > askedFor {
		s.usual += (d - s.usual) / usualOf
	}
}

// high reports whether syncs took half as long again as usual at some time since it was called last: all of them, or one
// of them several times as long.
func (s *strain) high() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = time.Now()
	worst := s.worst
	s.worst = s.recent
	return worst > s.usual*3/2
}
