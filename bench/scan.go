package bench

import "google.golang.org/protobuf/encoding/protowire"

// scanned is what the loads look at in an answer, read straight from its bytes. What a field number means depends on the
// method: of a range 2 are its keys and 4 is the count, of a transaction 2 says whether the comparisons held. All answers
// have the header in 1.
type scanned struct {
	revision  int64
	items     int   // how often field 2 occurs as bytes
	succeeded bool  // field 2 as a number
	count     int64 // field 4
}

// scan reads an answer. What cannot be read is taken as not there, so that a check fails.
func scan(b []byte) (s scanned) {
	each(b, func(field protowire.Number, number uint64, content []byte) {
		switch {
		case field == 1 && content != nil:
			each(content, func(field protowire.Number, number uint64, _ []byte) {
				if field == 3 {
					s.revision = int64(number)
				}
			})
		case field == 2 && content != nil:
			s.items++
		case field == 2:
			s.succeeded = number != 0
		case field == 4:
			s.count = int64(number)
		}
	})
	return s
}

// each calls f with every field of a message, until one cannot be read. content is nil for a field that is a number.
func each(b []byte, f func(field protowire.Number, number uint64, content []byte)) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		var number uint64
		var content []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			if content, n = protowire.ConsumeBytes(b); content == nil {
				content = []byte{}
			}
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return
		}
		f(field, number, content)
		b = b[n:]
	}
}
