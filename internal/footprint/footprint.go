// Package footprint measures how much memory a function asks for, so that tests can hold decoders to bounds: a few bytes from a
// disk or a network must not make them ask for much. It knows nothing of what is measured.
package footprint

import "runtime/metrics"

// Of returns about how many bytes f allocates, whether they are freed or not. What other goroutines allocate meanwhile counts
// too, and small objects are counted some KiB at a time, so it is for bounds far above that.
func Of(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}
