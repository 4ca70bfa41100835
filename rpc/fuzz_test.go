package rpc

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"

	"github.com/coteriedb/coterie/internal/footprint"
)

// framed is a message as it stands in a body.
func framed(flag byte, msg []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(msg))), msg...)
}

func compressed(tb testing.TB, msg []byte) []byte {
	tb.Helper()
	b, err := compress(encoding.GetCompressor(gzip.Name), bytes.Clone(msg), 0)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// FuzzMessage reads the body of a call. A message is what the body says, no larger than the limit before and after it is
// decompressed; and neither a length that is announced nor one that is compressed takes more memory than that.
func FuzzMessage(f *testing.F) {
	const limit = 64 << 10
	f.Add(framed(0, []byte("message")), false)
	f.Add(append(framed(0, nil), "and more"...), true)
	f.Add(framed(1, compressed(f, []byte("message"))), true)
	f.Add(framed(1, compressed(f, make([]byte, 1<<20))), true)
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff}, false)
	f.Add([]byte{2, 0, 0, 0, 0}, false)
	t0 := &own{o: &Options{MaxRecvBytes: limit}}
	f.Fuzz(func(t *testing.T, body []byte, coding bool) {
		r := &route{}
		if coding {
			r.recvCoding, r.compressor = gzip.Name, encoding.GetCompressor(gzip.Name)
		}
		var (
			msg []byte
			err error
		)
		if n := footprint.Of(func() { msg, err = t0.message(r, body) }); n > 1<<20+8*limit {
			t.Errorf("a body of %d bytes took %d", len(body), n)
		}
		ss := &serverStream{}
		ss.t, ss.r = t0, r
		whole, ok := ss.whole(body)
		if err != nil {
			if ok {
				t.Errorf("%x is taken as %x, and not as a message: %v", body, whole, err)
			}
			return
		}
		if len(msg) > limit {
			t.Errorf("a message of %d bytes", len(msg))
		}
		if body[0] == 0 != ok || ok && !bytes.Equal(whole, msg) {
			t.Errorf("%x is taken as %x (%t), and read as %x", body, whole, ok, msg)
		}
		if body[0] == 0 && !bytes.HasPrefix(body, framed(0, msg)) {
			t.Errorf("%x is read as %x", body, msg)
		}
	})
}

// FuzzReadMessage reads a message of any announced length from a peer that sends what it likes, in pieces.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("message"), uint32(7), 3)
	f.Add([]byte("message"), uint32(1<<31-1), 100)
	f.Add(make([]byte, 100_000), uint32(99_999), 7000)
	f.Fuzz(func(t *testing.T, sent []byte, n uint32, step int) {
		if step <= 0 {
			return
		}
		announced := int(n >> 1)
		var (
			msg []byte
			err error
		)
		took := footprint.Of(func() { msg, err = readMessage(&trickle{data: bytes.Clone(sent), step: step}, announced) })
		if took > 1<<20+uint64(4*len(sent)) {
			t.Errorf("%d bytes of %d announced took %d", len(sent), announced, took)
		}
		switch {
		case err == nil && (len(msg) != announced || !bytes.HasPrefix(sent, msg)):
			t.Errorf("%d bytes of %d are read as %x", announced, len(sent), msg)
		case err != nil && announced <= len(sent):
			t.Errorf("%d bytes of %d are not read: %v", announced, len(sent), err)
		case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
			t.Error(err)
		}
	})
}

// FuzzFields reads and writes what gRPC puts in header fields: timeouts, metadata and the texts of a status.
func FuzzFields(f *testing.F) {
	f.Add("100m", "token")
	f.Add("99999999H", "a%b\xff\n")
	f.Add("-1S", "\x00\x01")
	f.Fuzz(func(t *testing.T, timeout, text string) {
		if d, err := parseTimeout(timeout); err == nil {
			if d < 0 {
				t.Errorf("%q is %v", timeout, d)
			}
			if unit, ok := map[byte]time.Duration{'S': time.Second, 'm': time.Millisecond, 'n': 1}[timeout[len(timeout)-1]]; ok && d%unit != 0 {
				t.Errorf("%q is %v", timeout, d)
			}
		}
		for _, coding := range []*base64.Encoding{base64.RawStdEncoding, base64.StdEncoding} {
			if got, err := decodeMetadata("a-bin", coding.EncodeToString([]byte(text))); err != nil || got != text {
				t.Errorf("%q, encoded and decoded, is %q: %v", text, got, err)
			}
		}
		_, _ = decodeMetadata("a-bin", text) // must not panic
		encoded := percentEncode(text)
		if strings.ContainsFunc(encoded, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is encoded as %q", text, encoded)
		}
		if got, err := url.PathUnescape(encoded); err != nil || got != strings.ToValidUTF8(text, string(utf8.RuneError)) {
			t.Errorf("%q, encoded and decoded, is %q: %v", text, got, err)
		}
	})
}
