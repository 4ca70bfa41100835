package lease

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestFormat pins the bytes that docs/format-lease.md shows.
func TestFormat(t *testing.T) {
	for _, c := range []struct {
		lease      Lease
		key, value string
	}{
		{Lease{ID: 0x694d7b1f2c3a0001, TTL: 60}, "6c694d7b1f2c3a0001", "01000000000000003c0000000000000000"},
		{Lease{ID: -1, TTL: MaxTTL, RemainingTTL: 1}, "6cffffffffffffffff", "010000000218711a000000000000000001"},
		{Lease{ID: 1, TTL: -5}, "6c0000000000000001", "01fffffffffffffffb0000000000000000"},
	} {
		if got := hex.EncodeToString(encodeKey(c.lease.ID)); got != c.key {
			t.Errorf("key of %+v is %s, want %s", c.lease, got, c.key)
		}
		if got := hex.EncodeToString(encode(c.lease)); got != c.value {
			t.Errorf("value of %+v is %s, want %s", c.lease, got, c.value)
		}
		if got, err := decode(encodeKey(c.lease.ID), encode(c.lease)); err != nil || got != c.lease {
			t.Errorf("decoded %+v, %v, want %+v", got, err, c.lease)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	key := "6c0000000000000001"
	for _, c := range []struct{ name, key, value, want string }{
		{"short key", "6c01", "01", "want 'l' and 8 bytes"},
		{"other owner", "720000000000000001", "01", "want 'l' and 8 bytes"},
		{"id 0", "6c0000000000000000", "01", "id 0"},
		{"empty", key, "", "empty"},
		{"newer", key, "02000000000000003c0000000000000000", "format version 2, this release reads version 1"},
		{"short", key, "01000000000000003c00000000000000", "16 bytes long, want 17"},
		{"long", key, "01000000000000003c000000000000000000", "18 bytes long, want 17"},
		{"absurd", key, "010000000218711a010000000000000000", "above the maximum"},
	} {
		k, _ := hex.DecodeString(c.key)
		v, _ := hex.DecodeString(c.value)
		if l, err := decode(k, v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v, want an error with %q", c.name, l, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeKey(1), encode(Lease{TTL: 60, RemainingTTL: 30}))
	f.Add([]byte("l"), []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		l, err := decode(key, value)
		if err != nil {
			return
		}
		if string(encodeKey(l.ID)) != string(key) || string(encode(l)) != string(value) {
			t.Errorf("%x = %x decodes to %+v, which encodes otherwise", key, value, l)
		}
	})
}
