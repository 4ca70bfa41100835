package h2

import "time"

// wakeAt has tick called at t or before. It is called under mu.
func (c *Conn) wakeAt(t time.Time) {
	if c.closed || c.timer == nil || !t.Before(c.timerAt) {
		return
	}
	c.timerAt = t
	c.timer.Reset(time.Until(t))
}

func (c *Conn) wakeIn(d time.Duration) time.Time {
	t := time.Now().Add(d)
	c.wakeAt(t)
	return t
}

// tick does what time brings about: it runs on a goroutine of the timer.
func (c *Conn) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := time.Now()
	c.timerAt = now.Add(time.Hour)
	next := c.expire(now)
	if at := c.keepalive(now); at.Before(next) {
		next = at
	}
	if c.goingAway && !c.goneAway {
		if !now.Before(c.goneAt) {
			c.goAwayNow()
		} else if c.goneAt.Before(next) {
			next = c.goneAt
		}
	}
	c.scheduleFlush()
	if !c.closed {
		c.timerAt = next
		c.timer.Reset(next.Sub(now))
	}
}

// expire ends the requests whose deadline has passed, and returns when to look again: not at once where there are
// many, so that deadlines that come one after the other do not have the connection do nothing else.
func (c *Conn) expire(now time.Time) time.Time {
	next := now.Add(time.Hour)
	var expired []*Stream
	c.table.each(func(s *Stream) {
		switch {
		case s.deadline.IsZero():
		case !s.deadline.After(now):
			expired = append(expired, s)
		case s.deadline.Before(next):
			next = s.deadline
		}
	})
	c.lookAt = now.Add(time.Duration(c.table.n) * lookingCost)
	for _, s := range expired {
		c.dropUnsent(s)
		if s.headSent {
			c.appendBlock(s.id, flagEndStream, c.s.cfg.ExpiredTrailer, nil)
		} else {
			c.appendBlock(s.id, flagEndStream, c.s.cfg.ExpiredHead, c.s.cfg.ExpiredTrailer)
		}
		if !s.remoteDone {
			c.control(appendReset(nil, s.id, NoError))
		}
		c.end(s, ErrExpired)
	}
	return later(next, c.lookAt)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keepalive pings a peer that has been silent, and cuts it off when it does not answer. It returns
// when to look again.
func (c *Conn) keepalive(now time.Time) time.Time {
	cfg := &c.s.cfg
	heard := c.began.Add(time.Duration(c.heard.Load()))
	answerBy := c.pinged.Add(cfg.KeepaliveTimeout)
	switch silent := heard.Add(cfg.KeepaliveInterval); {
	case now.Before(silent):
		return silent
	case !c.pinged.After(heard): // or not at all
		c.pinged = now
		c.control(appendPing(nil, 0, [8]byte{}))
		return now.Add(cfg.KeepaliveTimeout)
	case now.Before(answerBy):
		return answerBy
	}
	c.cutLocked(connError{NoError, "keepalive ping not answered"})
	return now.Add(time.Hour)
}
