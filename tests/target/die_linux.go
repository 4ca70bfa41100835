package target

import "syscall"

// dieWithParent makes a child end when the test process dies, however that happens.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
