// Package bench puts a measured load on any server that speaks etcd's v3 API.
//
// It owns the workloads, the pacing of requests, the histograms and the report. It promises that
//
//   - a run ends by itself: by count or by duration, and a server that stops answering delays the
//     end by no more than Plan.Grace;
//   - at a fixed rate (an open loop), latency counts from the moment at which a request was due, so
//     that a stalled server cannot hide its stall by slowing the generator down, and requests that
//     were due and never sent are reported as such;
//   - answers are checked as far as it is cheap: a wrong answer is a failure, not a fast success;
//   - what is counted as server CPU is what the server's processes used between the first and the
//     last request that were measured.
//
// It knows etcd's wire definitions and nothing of Coterie's server, so that both sides of a
// comparison are treated alike.
package bench
