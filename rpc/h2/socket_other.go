//go:build !unix

package h2

// useSockets tells that sockets are used as connections alone here.
const useSockets = false

func (c *Conn) readSocket() error              { panic("h2: no socket") }
func (c *Conn) readOnce(fd uintptr) bool       { panic("h2: no socket") }
func (c *Conn) writeNow(b []byte) (int, error) { panic("h2: no socket") }
func (c *Conn) writeOnce(fd uintptr) bool      { panic("h2: no socket") }
