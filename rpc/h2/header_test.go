package h2

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// blocks encodes header blocks as a client does.
type blocks struct {
	*hpack.Encoder
	buf bytes.Buffer
}

func newBlocks() *blocks {
	b := new(blocks)
	b.Encoder = hpack.NewEncoder(&b.buf)
	return b
}

func (b *blocks) encode(fields ...hpack.HeaderField) []byte {
	b.buf.Reset()
	for _, f := range fields {
		if err := b.WriteField(f); err != nil {
			panic(err)
		}
	}
	return bytes.Clone(b.buf.Bytes())
}

func requestFields(path string, more ...string) []hpack.HeaderField {
	out := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}}
	for i := 0; i < len(more); i += 2 {
		out = append(out, hpack.HeaderField{Name: more[i], Value: more[i+1]})
	}
	return out
}

func mustRead(t *testing.T, r *headerReader, block []byte) (*Header, string) {
	t.Helper()
	h, varying, err := r.read(block)
	if err != nil {
		t.Fatal(err)
	}
	return h, varying
}

// Equal headers are one Header, whether they come as the same bytes or not.
func TestHeadersAreShared(t *testing.T) {
	r, b := newHeaderReader("timeout", 4096), newBlocks()
	first, _ := mustRead(t, r, b.encode(requestFields("/a", "x", "1")...)) // fills the table
	if first.Path != "/a" || first.Method != "POST" || first.Scheme != "http" || len(first.Fields) != 1 {
		t.Fatalf("decoded %+v", first)
	}
	again := b.encode(requestFields("/a", "x", "1")...)
	for range 3 {
		if h, _ := mustRead(t, r, again); h != first {
			t.Error("an equal header is another")
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { mustRead(t, r, again) }); allocs > 0 {
		t.Errorf("a block that repeats costs %v allocations", allocs)
	}
	for i := range 3 {
		h, varying := mustRead(t, r, b.encode(requestFields("/a", "x", "1", "timeout", fmt.Sprint(i))...))
		if h != first || varying != fmt.Sprint(i) {
			t.Errorf("with a timeout, got another header or the timeout %q", varying)
		}
	}
	if h, varying := mustRead(t, r, b.encode(requestFields("/a", "x", "1")...)); h != first || varying != "" {
		t.Errorf("without a timeout, got another header or the timeout %q", varying)
	}
	for _, other := range [][]hpack.HeaderField{
		requestFields("/b", "x", "1"), requestFields("/a", "x", "2"), requestFields("/a", "y", "1"), requestFields("/a"),
		requestFields("/a", "x", "1", "x", "1"),
	} {
		if h, _ := mustRead(t, r, b.encode(other...)); h == first {
			t.Errorf("%v was taken for another header", other)
		}
	}
}

// The same bytes mean something else when the compression table has changed between.
func TestBlocksAreForgottenWhenTheTableChanges(t *testing.T) {
	r, b := newHeaderReader("", 4096), newBlocks()
	mustRead(t, r, b.encode(requestFields("/a", "x", "1")...))
	byIndex := b.encode(requestFields("/a", "x", "1")...)
	if h, _ := mustRead(t, r, byIndex); h.Path != "/a" {
		t.Fatalf("decoded %+v", h)
	}
	mustRead(t, r, b.encode(requestFields("/b", "x", "2")...)) // two more entries
	h, _ := mustRead(t, r, byIndex)                            // the indices now name those
	if h.Path != "/b" || h.Fields[0].Value != "2" {
		t.Errorf("decoded %+v", h)
	}
}

func TestLargeHeaders(t *testing.T) {
	r, b := newHeaderReader("", 1000), newBlocks()
	large := string(bytes.Repeat([]byte("x"), 600))
	if _, _, err := r.read(b.encode(requestFields("/a", "one", large, "two", large)...)); err != errTooLarge {
		t.Errorf("a header beyond the limit: %v", err)
	}
	// The table has what came all the same.
	h, _ := mustRead(t, r, b.encode(requestFields("/a", "one", large)...))
	if h.Fields[0].Value != large {
		t.Errorf("decoded %+v", h)
	}
	if err := r.readTrailer(b.encode(hpack.HeaderField{Name: "one", Value: large}, hpack.HeaderField{Name: "two", Value: large})); err != errTooLarge {
		t.Errorf("a trailer beyond the limit: %v", err)
	}
}

// fieldLists are what FuzzHeaderBlocks begins with.
var fieldLists = [][]hpack.HeaderField{
	requestFields("/a"), requestFields("/a", "x", "1"), requestFields("/b", "x", "1", "timeout", "7"), requestFields("/a", "x", "1"),
	requestFields("/a", "x", "1", "timeout", "8"), {{Name: "x", Value: "2"}, {Name: "secret", Value: "3", Sensitive: true}},
}

// FuzzHeaderBlocks: a reader that remembers says of each block of a connection what a decoder says
// that does not.
func FuzzHeaderBlocks(f *testing.F) {
	b := newBlocks()
	var all []byte
	for range 2 {
		for _, fields := range fieldLists {
			block := b.encode(fields...)
			all = append(append(all, byte(len(block))), block...)
		}
	}
	f.Add(all)
	f.Add([]byte{2, 0x20, 0x82, 1, 0x82, 1, 0x82, 3, 0x3f, 0xe1, 0x1f})
	f.Add([]byte{0, 1, 0x80, 6, 0x0f, 0x2f, 1, 'x', 0x10, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newHeaderReader("timeout", 300)
		var plain []hpack.HeaderField
		decoder := hpack.NewDecoder(defaultTableSize, func(f hpack.HeaderField) { plain = append(plain, f) })
		decoder.SetMaxStringLength(300)
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			block := data[1 : 1+n]
			data = data[1+n:]
			h, varying, err := r.read(block)
			plain = nil
			_, plainErr := decoder.Write(block)
			if plainErr == nil {
				plainErr = decoder.Close()
			}
			if _, fatal := err.(connError); fatal != (plainErr != nil) {
				t.Fatalf("block %x: %v, and %v by a plain decoder", block, err, plainErr)
			} else if fatal {
				return
			}
			if err == nil {
				compareHeader(t, h, varying, plain)
			}
		}
	})
}

func compareHeader(t *testing.T, h *Header, varying string, plain []hpack.HeaderField) {
	t.Helper()
	var pseudo, regular []hpack.HeaderField
	want, found := "", false
	for _, f := range plain {
		f.Sensitive = false
		switch {
		case f.Name == "timeout" && !found:
			want, found = f.Value, true
		case f.Name[0] == ':':
			pseudo = append(pseudo, f)
		default:
			regular = append(regular, f)
		}
	}
	if varying != want || !slices.Equal(h.pseudo, pseudo) || !slices.Equal(h.Fields, regular) {
		t.Fatalf("decoded %+v and %q of %+v", h, varying, plain)
	}
	for _, f := range pseudo {
		got := map[string]string{":method": h.Method, ":scheme": h.Scheme, ":authority": h.Authority, ":path": h.Path}[f.Name]
		if got != f.Value {
			t.Fatalf("%s is %q, want %q", f.Name, got, f.Value)
		}
	}
}

// What is encoded is decoded again, whatever the peer's table.
func TestEncoder(t *testing.T) {
	long := string(bytes.Repeat([]byte("y"), 300))
	lists := [][]Field{
		{{Name: ":status", Value: "200"}, Frequent(1, "content-type", "a/b")}, {Frequent(2, "end", "0")},
		{{Name: ":status", Value: "404"}, Frequent(1, "content-type", "a/b"), {Name: "x", Value: long}},
		{{Name: "end", Value: "1"}, {Name: long, Value: ""}},
	}
	for _, size := range []uint32{defaultTableSize, 1 << 20, 0, 100} {
		var e encoder
		var got []hpack.HeaderField
		d := hpack.NewDecoder(min(size, defaultTableSize), func(f hpack.HeaderField) { got = append(got, f) })
		e.setTableSize(size)
		for round := range 3 {
			for _, list := range lists {
				got = nil
				block := e.append(nil, list)
				if _, err := d.Write(block); err != nil {
					t.Fatalf("table size %d, round %d: %v", size, round, err)
				}
				for i, f := range list {
					if i >= len(got) || got[i].Name != f.Name || got[i].Value != f.Value {
						t.Fatalf("table size %d: %+v became %+v", size, list, got)
					}
				}
				if round > 0 && size >= defaultTableSize && len(list) < 3 && list[0].Name != "end" && len(block) != len(list) {
					t.Errorf("table size %d: %+v takes %d bytes", size, list, len(block))
				}
			}
		}
	}
}
