//go:build !linux

package target

import "syscall"

// dieWithParent does nothing where the system has no signal for it.
func dieWithParent() *syscall.SysProcAttr { return nil }
