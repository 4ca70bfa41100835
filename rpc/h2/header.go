package h2

import (
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// Header is a request's header. It never changes, and requests with equal headers share it.
type Header struct {
	Method, Scheme, Authority, Path string
	// Fields are the other fields in their order, without Config.Varying. Names are in lower case.
	Fields []hpack.HeaderField
	// ContentLength is -1 where it is not given.
	ContentLength int64
	// Route is for the Handler: what it has found out about requests with this header. Only
	// Handler.Request may set it.
	Route any

	pseudo []hpack.HeaderField
}

// Get returns the first value of a field.
func (h *Header) Get(name string) (value string, ok bool) {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value, true
		}
	}
	return "", false
}

// A connection remembers a few headers that are not too large.
const (
	rememberedHeaders  = 4
	rememberedMaxBytes = 4 << 10
)

// remembered is a header that has come before.
type remembered struct {
	header *Header
	// block is how it came; nil when the compression table has changed since, which gives other
	// meaning to the same bytes.
	block   []byte
	varying string
}

// headerReader decodes header blocks. Requests on one connection have mostly the same header,
// and clients send it as the same bytes: those are recognised without decoding them again.
type headerReader struct {
	decoder  *hpack.Decoder
	varyName string
	maxBytes int // of a list, counted as RFC 9113, section 6.5.2 does

	recent [rememberedHeaders]remembered
	next   int // of recent: to be replaced

	// Of the block being decoded.
	fields           []hpack.HeaderField // as they came, without the varying one
	varying          string
	size             int
	pseudos          int  // of fields: they come first
	tooLarge, varies bool // varies: the varying field has come
	malformed        string
}

func newHeaderReader(varying string, maxBytes int) *headerReader {
	r := &headerReader{varyName: varying, maxBytes: maxBytes}
	r.decoder = hpack.NewDecoder(defaultTableSize, r.take)
	r.decoder.SetMaxStringLength(maxBytes)
	return r
}

// errTooLarge is returned for a list that is larger than allowed. The connection goes on.
var errTooLarge = streamError{code: EnhanceYourCalm, reason: "the header is too large"}

// read decodes the block of a request. A streamError, which names no stream, leaves the
// compression table intact; every other error is a connError.
func (r *headerReader) read(block []byte) (h *Header, varying string, err error) {
	for i := range r.recent {
		if e := &r.recent[i]; e.block != nil && string(e.block) == string(block) {
			return e.header, e.varying, nil
		}
	}
	changes := changesTable(block)
	if err := r.decode(block); err != nil {
		return nil, "", err
	}
	if changes {
		for i := range r.recent {
			r.recent[i].block = nil
		}
	}
	switch {
	case r.tooLarge:
		return nil, "", errTooLarge
	case r.malformed != "":
		return nil, "", streamError{code: Protocol, reason: r.malformed}
	}
	e := r.recall()
	if e == nil {
		if h, err = newHeader(r.fields, r.pseudos); err != nil {
			return nil, "", err
		}
		if r.size > rememberedMaxBytes {
			return h, r.varying, nil
		}
		e = &r.recent[r.next]
		r.next = (r.next + 1) % len(r.recent)
		*e = remembered{header: h}
	}
	if !changes && len(block) <= rememberedMaxBytes {
		e.block, e.varying = append(e.block[:0:0], block...), r.varying
	}
	return e.header, r.varying, nil
}

// readTrailer decodes and checks the trailer of a request, which is not kept.
func (r *headerReader) readTrailer(block []byte) error {
	if err := r.decode(block); err != nil {
		return err
	}
	if changesTable(block) {
		for i := range r.recent {
			r.recent[i].block = nil
		}
	}
	switch {
	case r.tooLarge:
		return errTooLarge
	case r.malformed != "":
		return streamError{code: Protocol, reason: r.malformed}
	case r.pseudos > 0:
		return streamError{code: Protocol, reason: "a trailer with pseudo-header fields"}
	}
	for _, f := range r.fields {
		if reason := checkField(f); reason != "" {
			return streamError{code: Protocol, reason: reason}
		}
	}
	return nil
}

func (r *headerReader) decode(block []byte) error {
	r.fields, r.varying, r.size, r.pseudos = r.fields[:0], "", 0, 0
	r.tooLarge, r.varies, r.malformed = false, false, ""
	if _, err := r.decoder.Write(block); err != nil {
		return connError{Compression, err.Error()}
	}
	if err := r.decoder.Close(); err != nil {
		return connError{Compression, err.Error()}
	}
	return nil
}

// take is given each field by the decoder.
func (r *headerReader) take(f hpack.HeaderField) {
	r.size += int(f.Size())
	if r.size > r.maxBytes || r.tooLarge {
		r.tooLarge = true
		return
	}
	if r.varyName != "" && f.Name == r.varyName && !r.varies {
		r.varying, r.varies = f.Value, true
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		if r.pseudos < len(r.fields) || r.varies {
			r.malformed = "a pseudo-header field after a regular one"
		}
		r.pseudos++
	}
	f.Sensitive = false // as if it were a part of what the field says
	r.fields = append(r.fields, f)
}

// recall finds the remembered header that has the decoded fields.
func (r *headerReader) recall() *remembered {
next:
	for i := range r.recent {
		e := &r.recent[i]
		if e.header == nil || len(e.header.pseudo) != r.pseudos || len(e.header.Fields) != len(r.fields)-r.pseudos {
			continue
		}
		for j := range r.pseudos {
			if e.header.pseudo[j] != r.fields[j] {
				continue next
			}
		}
		for j, f := range e.header.Fields {
			if f != r.fields[r.pseudos+j] {
				continue next
			}
		}
		return e
	}
	return nil
}

// newHeader checks fields by RFC 9113, section 8, and makes them a Header.
func newHeader(fields []hpack.HeaderField, pseudos int) (*Header, error) {
	fields = append([]hpack.HeaderField(nil), fields...)
	h := &Header{pseudo: fields[:pseudos], Fields: fields[pseudos:], ContentLength: -1}
	malformed := func(reason string) (*Header, error) {
		return nil, streamError{code: Protocol, reason: reason}
	}
	var seen [4]bool
	for _, f := range h.pseudo {
		var to *string
		var i int
		switch f.Name {
		case ":method":
			to, i = &h.Method, 0
		case ":scheme":
			to, i = &h.Scheme, 1
		case ":authority":
			to, i = &h.Authority, 2
		case ":path":
			to, i = &h.Path, 3
		default:
			return malformed("an unknown pseudo-header field")
		}
		if seen[i] {
			return malformed("a pseudo-header field twice")
		}
		if !httpguts.ValidHeaderFieldValue(f.Value) {
			return malformed("an invalid pseudo-header field")
		}
		seen[i] = true
		*to = f.Value
	}
	if h.Method == "CONNECT" {
		if h.Authority == "" || seen[1] || seen[3] {
			return malformed("CONNECT with other fields than an authority")
		}
	} else if h.Method == "" || h.Scheme == "" || h.Path == "" {
		return malformed("no method, scheme or path")
	}
	for _, f := range h.Fields {
		if reason := checkField(f); reason != "" {
			return malformed(reason)
		}
		if f.Name != "content-length" {
			continue
		}
		n, err := strconv.ParseUint(f.Value, 10, 63)
		if err != nil || h.ContentLength >= 0 && h.ContentLength != int64(n) {
			return malformed("an invalid content-length")
		}
		h.ContentLength = int64(n)
	}
	return h, nil
}

// checkField says what is wrong with a regular field.
func checkField(f hpack.HeaderField) string {
	if !httpguts.ValidHeaderFieldName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
		return "an invalid field"
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; 'A' <= c && c <= 'Z' {
			return "a field's name in upper case"
		}
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "a field that belongs to HTTP/1"
	case "te":
		if f.Value != "trailers" {
			return "te is not trailers"
		}
	}
	return ""
}

// changesTable tells whether decoding a block changes the compression table: whether it has a
// literal that is to be indexed, or a new table size. It may say so of a block that is invalid.
func changesTable(block []byte) bool {
	for len(block) > 0 {
		b := block[0]
		switch {
		case b&0x80 != 0: // indexed
			block = skipInt(block, 0x7f)
		case b&0x60 != 0: // indexed literal, or table size
			return true
		default: // literal that is not indexed
			name := b&0x0f == 0
			block = skipInt(block, 0x0f)
			if name {
				block = skipString(block)
			}
			block = skipString(block)
		}
	}
	return false
}

// skipInt returns what follows an integer (RFC 7541, section 5.1).
func skipInt(b []byte, prefix byte) []byte {
	_, rest := readInt(b, prefix)
	return rest
}

// skipString returns what follows a string, or nothing where the string is incomplete.
func skipString(b []byte) []byte {
	n, rest := readInt(b, 0x7f)
	if n > uint64(len(rest)) {
		return nil
	}
	return rest[n:]
}

func readInt(b []byte, prefix byte) (n uint64, rest []byte) {
	if len(b) == 0 {
		return 0, nil
	}
	n = uint64(b[0] & prefix)
	if n < uint64(prefix) {
		return n, b[1:]
	}
	for i, shift := 1, 0; i < len(b) && shift < 63; i, shift = i+1, shift+7 {
		n += uint64(b[i]&0x7f) << shift
		if b[i]&0x80 == 0 {
			return n, b[i+1:]
		}
	}
	return n, nil
}
