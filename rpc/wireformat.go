package rpc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/rpc/h2"
)

// What answers begin and end with that are in order.
var (
	status200   = h2.Field{Name: ":status", Value: "200"}
	contentType = h2.Frequent(1, "content-type", "application/grpc")

	headOK    = []h2.Field{status200, contentType}
	trailerOK = []h2.Field{h2.Frequent(2, "grpc-status", "0")}
)

// answerHead is the header of answers to requests of a content type and encoding.
func answerHead(subtype string, c encoding.Compressor) []h2.Field {
	if len(subtype) < 2 && c == nil {
		return headOK
	}
	head := []h2.Field{status200, contentType}
	if len(subtype) > 1 {
		head[1] = h2.Field{Name: "content-type", Value: "application/grpc+" + subtype[1:]}
	}
	if c != nil {
		head = append(head, h2.Field{Name: "grpc-encoding", Value: c.Name()})
	}
	return head
}

// statusFields is a status as it stands in a trailer.
func statusFields(st *status.Status) []h2.Field {
	fields := []h2.Field{{Name: "grpc-status", Value: strconv.Itoa(int(st.Code()))}}
	if m := st.Message(); m != "" {
		fields = append(fields, h2.Field{Name: "grpc-message", Value: percentEncode(m)})
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil { // details are valid or were not attached
			fields = append(fields, h2.Field{Name: "grpc-status-details-bin", Value: base64.RawStdEncoding.EncodeToString(b)})
		}
	}
	return fields
}

// percentEncode encodes a status message: what is not printable ASCII, and the percent sign.
func percentEncode(msg string) string {
	plain := func(c byte) bool { return c >= ' ' && c <= '~' && c != '%' }
	i := 0
	for i < len(msg) && plain(msg[i]) {
		i++
	}
	if i == len(msg) {
		return msg
	}
	msg = strings.ToValidUTF8(msg, string(utf8.RuneError))
	out := []byte(msg[:i])
	for ; i < len(msg); i++ {
		if plain(msg[i]) {
			out = append(out, msg[i])
		} else {
			const digits = "0123456789ABCDEF"
			out = append(out, '%', digits[msg[i]>>4], digits[msg[i]&15])
		}
	}
	return string(out)
}

// parseTimeout parses the value of grpc-timeout.
func parseTimeout(s string) (time.Duration, error) {
	if len(s) < 2 || len(s) > 9 {
		return 0, fmt.Errorf("transport: timeout string is too short or too long: %.*q", maxEcho, s)
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil {
		return 0, err
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * unit, nil
}

// reserved tells whether a field is gRPC's own and not metadata.
func reserved(name string) bool {
	switch name {
	case "content-type", "user-agent", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te":
		return true
	}
	return strings.HasPrefix(name, ":")
}

// decodeMetadata returns a field's value as metadata: that of a -bin field is encoded.
func decodeMetadata(name, value string) (string, error) {
	if !strings.HasSuffix(name, "-bin") {
		return value, nil
	}
	coding := base64.RawStdEncoding
	if len(value)%4 == 0 {
		coding = base64.StdEncoding
	}
	b, err := coding.DecodeString(value)
	return string(b), err
}

// metadataFields is metadata as it stands in a header or trailer.
func metadataFields(fields []h2.Field, md metadata.MD) []h2.Field {
	for name, values := range md {
		if reserved(name) {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			fields = append(fields, h2.Field{Name: name, Value: v})
		}
	}
	return fields
}

// checkMetadata says what of metadata cannot be sent.
func checkMetadata(md metadata.MD) error {
	for name, values := range md {
		if name == "" || strings.HasPrefix(name, ":") && !strings.HasPrefix(name, ":authority") {
			return errors.New("there is an empty or pseudo key in the header")
		}
		for i := range len(name) {
			c := name[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return fmt.Errorf("header key %q contains illegal characters not in [0-9a-z-_.]", name)
			}
		}
		if strings.HasSuffix(name, "-bin") {
			continue
		}
		for _, v := range values {
			for i := range len(v) {
				if v[i] < ' ' || v[i] > '~' {
					return fmt.Errorf("header key %q contains value with non-printable ASCII characters", name)
				}
			}
		}
	}
	return nil
}

// metadataOnce is the metadata of requests with one header, made when it is first asked for.
type metadataOnce struct {
	once sync.Once
	md   metadata.MD
}

// check says which field is malformed.
func (m *metadataOnce) check(h *h2.Header) error {
	for _, f := range h.Fields {
		if reserved(f.Name) {
			continue
		}
		if _, err := decodeMetadata(f.Name, f.Value); err != nil {
			return fmt.Errorf("malformed binary metadata %.*q in header %.*q: %w", maxEcho, f.Value, maxEcho, f.Name, err)
		}
	}
	return nil
}

// incoming returns ctx with the metadata.
func (m *metadataOnce) incoming(ctx context.Context, h *h2.Header) context.Context {
	m.once.Do(func() {
		md := make(metadata.MD, len(h.Fields)+1)
		if h.Authority != "" {
			md[":authority"] = []string{h.Authority}
		}
		for _, f := range h.Fields {
			switch {
			case f.Name == "host":
				if h.Authority == "" {
					md[":authority"] = []string{f.Value}
				}
				continue
			case reserved(f.Name) && f.Name != "user-agent" && f.Name != "content-type":
				continue
			}
			v, _ := decodeMetadata(f.Name, f.Value) // check has found no error
			md[f.Name] = append(md[f.Name], v)
		}
		m.md = md
	})
	return metadata.NewIncomingContext(ctx, m.md)
}
