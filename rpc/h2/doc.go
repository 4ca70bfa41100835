// Package h2 is the server side of HTTP/2 connections (RFC 9113), made for many small requests.
//
// It owns a connection from its preface to its end: frames, header compression, streams, flow
// control, pings, and bounds on all that a peer can make it hold. A Handler is told of requests
// on the goroutine that reads the connection, and answers them at once, or later from any
// goroutine. What an answer means is not the package's business: it knows neither gRPC nor
// package net/http.
//
// DESIGN.md, in package rpc, has the way of a request, the bounds, and how output is written.
package h2
