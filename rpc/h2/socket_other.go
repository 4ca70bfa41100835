//go:build !unix

package h2

// Sockets are used as connections alone here: newConn is not given any.

func (c *Conn) readSocket() error              { panic("h2: no socket") }
func (c *Conn) writeNow(b []byte) (int, error) { panic("h2: no socket") }
func (c *Conn) writeOnce(fd uintptr) bool      { panic("h2: no socket") }
