package h2

// Field is a field of a response's header or trailer. Names are in lower case.
type Field struct {
	Name, Value string
	// frequent is the place in Config.Frequent, counted from 1.
	frequent uint8
}

// maxFrequent bounds Config.Frequent, so that its fields fit in the compression table together.
const maxFrequent = 8

// status200 is the index of ":status: 200" in the static table (RFC 7541, appendix A).
const status200 = 8

// firstDynamic is the index of the youngest field in the dynamic table.
const firstDynamic = 62

// encoder writes header blocks. Only the fields of Config.Frequent are put in the compression
// table, and none is ever evicted, so that its state is the order of their insertion.
type encoder struct {
	// order is when each frequent field was inserted, counted from 1; 0: not yet.
	order    [maxFrequent + 1]uint8
	inserted uint8
	// plain: the peer's table is too small, and not used.
	plain bool
	// announce: the next block begins by saying that it is not.
	announce bool
}

// setTableSize follows the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) setTableSize(n uint32) {
	if n < defaultTableSize && !e.plain {
		*e = encoder{plain: true, announce: true}
	}
}

// append appends a header block.
func (e *encoder) append(dst []byte, fields []Field) []byte {
	if e.announce {
		e.announce = false
		dst = append(dst, 0x20) // table size 0
	}
	for i := range fields {
		dst = e.appendField(dst, &fields[i])
	}
	return dst
}

func (e *encoder) appendField(dst []byte, f *Field) []byte {
	if f.frequent == 0 || e.plain {
		if f.Name == ":status" && f.Value == "200" {
			return append(dst, 0x80|status200)
		}
		return appendLiteral(append(dst, 0), f)
	}
	if at := e.order[f.frequent]; at != 0 {
		return append(dst, 0x80|(firstDynamic+e.inserted-at))
	}
	e.inserted++
	e.order[f.frequent] = e.inserted
	return appendLiteral(append(dst, 0x40), f)
}

// appendLiteral appends name and value without Huffman coding.
func appendLiteral(dst []byte, f *Field) []byte {
	dst = append(appendInt(dst, len(f.Name)), f.Name...)
	return append(appendInt(dst, len(f.Value)), f.Value...)
}

// appendInt appends an integer with a prefix of 7 bits, the eighth being 0 (RFC 7541, section 5.1).
func appendInt(dst []byte, n int) []byte {
	if n < 0x7f {
		return append(dst, byte(n))
	}
	dst = append(dst, 0x7f)
	for n -= 0x7f; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

// Frequent returns a field that answers often have. Each place, from 1 to 8, always has the same
// name and value.
func Frequent(place uint8, name, value string) Field {
	if place == 0 || place > maxFrequent {
		panic("h2: no such place")
	}
	return Field{name, value, place}
}
