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
	for len(b) > 0 {
		field, v, n := consume(b)
		b = b[n:]
		switch {
		case field == 1 && v.content != nil:
			for header := v.content; len(header) > 0; {
				field, v, n := consume(header)
				header = header[n:]
				if field == 3 && v.content == nil {
					s.revision = int64(v.number)
				}
			}
		case field == 2 && v.content != nil:
			s.items++
		case field == 2:
			s.succeeded = v.number != 0
		case field == 4 && v.content == nil:
			s.count = int64(v.number)
		}
	}
	return s
}

// value is a field's: content, or number if that is nil.
type value struct {
	number  uint64
	content []byte
}

// consume reads the field that b begins with, and of how many bytes it is. What is of another kind, and all that follows what cannot be read, is field 0.
// (An iterator would be nicer to use, and takes more of the generator's time, as does a struct that remembers where it is.)
func consume(b []byte) (field protowire.Number, v value, length int) {
	field, kind, length := protowire.Number(b[0]>>3), protowire.Type(b[0]&7), 1
	if b[0] >= 0x80 || field == 0 { // not the one byte that nearly all take
		if field, kind, length = protowire.ConsumeTag(b); length < 0 {
			return 0, value{}, len(b)
		}
	}
	var n int
	switch kind {
	case protowire.VarintType:
		v.number, n = protowire.ConsumeVarint(b[length:])
	case protowire.BytesType:
		if v.content, n = protowire.ConsumeBytes(b[length:]); v.content == nil {
			v.content = []byte{}
		}
	default:
		n = protowire.ConsumeFieldValue(field, kind, b[length:])
		field = 0 // no field that is looked at is of another kind
	}
	if n < 0 {
		return 0, value{}, len(b)
	}
	return field, v, length + n
}
