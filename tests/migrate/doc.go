// Package migrate moves data between real etcd and Coterie, by the commands that operators use, and compares all that the
// two then serve: every revision of the history, hashes, leases, users, roles, alarms and members. The data is random,
// from a seed that a failure names.
package migrate
