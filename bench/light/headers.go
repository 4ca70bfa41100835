package light

import (
	"bytes"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	hpackTable = 4096 // bytes of the table, as HTTP/2 begins with it
	// maxKnown bounds the answers that are remembered. A server that answers well needs two.
	maxKnown = 64
	// maxHeaderString bounds one name or value.
	maxHeaderString = 64 << 10
)

// requestHeaders encodes the header blocks of requests.
type requestHeaders struct {
	fields []hpack.HeaderField // of every method but its path
	buf    *bytes.Buffer
	enc    *hpack.Encoder
	// Invariant: a block in known leaves both ends' tables alone, and they have not changed since it was encoded.
	known map[string][]byte
}

func newRequestHeaders(scheme, authority string, metadata map[string]string) requestHeaders {
	buf := new(bytes.Buffer)
	h := requestHeaders{buf: buf, enc: hpack.NewEncoder(buf), known: make(map[string][]byte), fields: []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: scheme},
		{Name: ":path"}, // of the method
		{Name: ":authority", Value: authority},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "user-agent", Value: "coterie-bench"},
		{Name: "te", Value: "trailers"},
	}}
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		h.fields = append(h.fields, hpack.HeaderField{Name: name, Value: metadata[name]})
	}
	return h
}

const pathField = 2

// block is the header block of the next call of a method; it must be sent next.
func (h *requestHeaders) block(method string) []byte {
	if b, ok := h.known[method]; ok {
		return b
	}
	h.buf.Reset()
	for i, f := range h.fields {
		if i == pathField {
			f.Value = method
		}
		_ = h.enc.WriteField(f) // a buffer takes everything
	}
	b := slices.Clone(h.buf.Bytes())
	if changesTable(b) {
		clear(h.known)
	} else {
		h.known[method] = b
	}
	return b
}

// limitTable obeys the server, whose table may be smaller. The next block tells it that.
func (h *requestHeaders) limitTable(size uint32) {
	h.enc.SetMaxDynamicTableSizeLimit(size)
	h.enc.SetMaxDynamicTableSize(min(size, hpackTable))
	clear(h.known)
}

// answer is what a header block from the server says.
type answer struct {
	httpStatus  string
	contentType string
	interim     bool  // a 1xx answer: another one follows
	status      error // by grpc-status: nil for OK, an error too if there is none
}

// answerHeaders decodes the header blocks of answers.
type answerHeaders struct {
	dec    *hpack.Decoder
	fields *[]hpack.HeaderField // that dec has emitted
	// Invariant: a block in known leaves the table alone, which has not changed since it was decoded. So it still says the same.
	known map[string]*answer
}

func newAnswerHeaders() answerHeaders {
	fields := new([]hpack.HeaderField)
	dec := hpack.NewDecoder(hpackTable, func(f hpack.HeaderField) { *fields = append(*fields, f) })
	dec.SetMaxStringLength(maxHeaderString)
	return answerHeaders{dec: dec, fields: fields, known: make(map[string]*answer)}
}

func (h *answerHeaders) decode(block []byte) (*answer, error) {
	if a, ok := h.known[string(block)]; ok {
		return a, nil
	}
	*h.fields = (*h.fields)[:0]
	if _, err := h.dec.Write(block); err != nil {
		return nil, err
	}
	if err := h.dec.Close(); err != nil {
		return nil, err
	}
	a := newAnswer(*h.fields)
	switch {
	case changesTable(block):
		clear(h.known)
	case len(h.known) < maxKnown:
		h.known[string(block)] = a
	}
	return a, nil
}

func newAnswer(fields []hpack.HeaderField) *answer {
	a := &answer{}
	code, message := "", ""
	for _, f := range fields {
		switch f.Name {
		case ":status":
			a.httpStatus = f.Value
		case "content-type":
			a.contentType = f.Value
		case "grpc-status":
			code = f.Value
		case "grpc-message":
			message = f.Value
		}
	}
	a.interim = strings.HasPrefix(a.httpStatus, "1")
	a.status = statusOf(code, message)
	return a
}

func statusOf(code, message string) error {
	if code == "0" {
		return nil
	}
	n, err := strconv.ParseUint(code, 10, 32)
	if err != nil {
		return status.Errorf(codes.Internal, "the server ended the stream with the status %q", code)
	}
	if plain, err := url.PathUnescape(message); err == nil {
		message = plain
	}
	return status.Error(codes.Code(n), message)
}

// refusal is an error when the first header block of a stream is not one of gRPC.
func (a *answer) refusal() error {
	switch {
	case a.interim:
		return nil
	case a.httpStatus != "200":
		return status.Errorf(codes.Unavailable, "the server answered with HTTP status %q", a.httpStatus)
	case !strings.HasPrefix(a.contentType, "application/grpc"):
		return status.Errorf(codes.Unknown, "the server answered with the content type %q", a.contentType)
	}
	return nil
}

// changesTable reports whether a header block adds to the table that both ends keep, or changes its size. Of a block that
// does not, the same bytes mean the same as long as no other one does. A malformed block is said to do so.
func changesTable(block []byte) bool {
	for len(block) > 0 {
		ok := false
		switch first := block[0]; {
		case first&0x80 != 0: // an indexed field
			_, block, ok = prefixed(block, 7)
		case first&0xe0 == 0: // a literal that is not added
			var name uint64
			if name, block, ok = prefixed(block, 4); ok && name == 0 {
				block, ok = skipString(block)
			}
			if ok {
				block, ok = skipString(block)
			}
		}
		if !ok {
			return true
		}
	}
	return false
}

// prefixed reads an integer that begins in the low bits of the first byte.
func prefixed(b []byte, bits uint) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	full := uint64(1)<<bits - 1
	if n = uint64(b[0]) & full; n < full {
		return n, b[1:], true
	}
	for i, more := range b[1:] {
		if i == 4 {
			break // nothing in a header block is that large
		}
		n += uint64(more&0x7f) << (7 * i)
		if more&0x80 == 0 {
			return n, b[2+i:], true
		}
	}
	return 0, nil, false
}

func skipString(b []byte) (rest []byte, ok bool) {
	n, rest, ok := prefixed(b, 7)
	if !ok || n > uint64(len(rest)) {
		return nil, false
	}
	return rest[n:], true
}
