package h2

import "time"

// scheduleFlush has what is framed written soon. It is called under mu.
func (c *Conn) scheduleFlush() {
	if len(c.out) == 0 && !c.finishing || c.scheduled || c.writing || c.closed || c.batch.Load() {
		return // whoever has set one of these looks again
	}
	c.scheduled = true
	c.flusher.add(c)
}

// flush writes what is framed, as far as the socket takes it at once; a goroutine writes the rest.
func (c *Conn) flush() {
	c.mu.Lock()
	c.scheduled = false
	for !c.writing && !c.closed && len(c.out) > 0 {
		b := c.takeOut()
		c.writing = true
		if c.socket == nil {
			c.writers.Add(1)
			go c.writeRest(b, 0) // ends with the connection; serve waits
			break
		}
		c.mu.Unlock()
		n, err := c.writeNow(b)
		if err == nil && n < len(b) {
			c.writers.Add(1)
			go c.writeRest(b, n) // as above
			return
		}
		recycle(b)
		c.mu.Lock()
		c.wrote(err)
	}
	c.hangUp()
	c.mu.Unlock()
}

// writeRest waits for the socket until all is written.
func (c *Conn) writeRest(b []byte, n int) {
	defer c.writers.Done()
	for {
		_, err := c.nc.Write(b[n:])
		recycle(b)
		c.mu.Lock()
		c.wrote(err)
		if c.closed || len(c.out) == 0 {
			c.hangUp()
			c.mu.Unlock()
			return
		}
		b, n = c.takeOut(), 0
		c.writing = true
		c.mu.Unlock()
	}
}

// wrote notes that writing has ended, and frames what has been waiting for that.
func (c *Conn) wrote(err error) {
	c.writing = false
	if err != nil {
		c.cutLocked(err)
		return
	}
	c.pump()
}

// hangUp says that nothing more will come when all has been written. It is called under mu.
func (c *Conn) hangUp() {
	if !c.finishing || c.lingering || c.closed || c.writing || len(c.out) > 0 {
		return
	}
	c.lingering = true
	if c.socket != nil {
		c.lingerFor(c.closeWrite())
		return
	}
	c.writers.Add(1)
	go func() { // serve waits; TLS bounds it
		defer c.writers.Done()
		d := c.closeWrite()
		c.mu.Lock()
		c.lingerFor(d)
		c.mu.Unlock()
	}()
}

// closeWrite ends the sending half, and returns how long to wait for the peer to end the other.
func (c *Conn) closeWrite() time.Duration {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		return lingerTimeout
	}
	return 0
}

func (c *Conn) lingerFor(d time.Duration) {
	if !c.closed {
		_ = c.nc.SetReadDeadline(time.Now().Add(d))
	}
}
