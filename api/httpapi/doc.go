// Package httpapi is what a member answers over plain HTTP: the JSON gateway to the gRPC API
// under /v3/, /version, the health checks /health, /livez and /readyz, /metrics and, where
// allowed, Go's profiles.
//
// It promises the paths, parameters, status codes and bodies of etcd 3.7, so that probes and
// scripts made for etcd work. It decides nothing about the store: requests to it go through the
// gRPC API, health is read from a small interface. It must not know listeners or TLS.
package httpapi
