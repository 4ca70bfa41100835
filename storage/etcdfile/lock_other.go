//go:build !unix

package etcdfile

import "os"

// lockShared does nothing where etcd does not lock its database in a way that
// others can see.
func lockShared(*os.File) error { return nil }
