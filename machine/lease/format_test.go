package lease

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestFormat pins the bytes that docs/format-lease.md shows.
func TestFormat(t *testing.T) {
	for _, c := range []struct {
		record     record
		key, value string
	}{
		{record{Lease: Lease{ID: 0x694d7b1f2c3a0001, TTL: 60}}, "6c694d7b1f2c3a0001", "02000000000000003c00000000000000000000000000000000"},
		{record{Lease: Lease{ID: -1, TTL: MaxTTL, RemainingTTL: 1}, recorded: time.Second}, "6cffffffffffffffff", "020000000218711a000000000000000001000000003b9aca00"},
		{record{Lease: Lease{ID: 1, TTL: -5}}, "6c0000000000000001", "02fffffffffffffffb00000000000000000000000000000000"},
	} {
		if got := hex.EncodeToString(encodeKey(c.record.ID)); got != c.key {
			t.Errorf("key of %+v is %s, want %s", c.record, got, c.key)
		}
		if got := hex.EncodeToString(encode(&c.record)); got != c.value {
			t.Errorf("value of %+v is %s, want %s", c.record, got, c.value)
		}
		if got, err := decode(encodeKey(c.record.ID), encode(&c.record)); err != nil || !reflect.DeepEqual(got, &c.record) {
			t.Errorf("decoded %+v, %v, want %+v", got, err, c.record)
		}
	}
	if key := encodeKey(0); !isClock(key) || hex.EncodeToString(key) != "6c0000000000000000" {
		t.Errorf("the clock's key is %x", key)
	}
	if got := hex.EncodeToString(encodeClock(90 * time.Second)); got != "0100000014f46b0400" {
		t.Errorf("a clock of 90 s is %s", got)
	}
}

// TestFirstVersion: records of the first version can be read.
func TestFirstVersion(t *testing.T) {
	value, _ := hex.DecodeString("01000000000000003c000000000000001e")
	want := &record{Lease: Lease{ID: 1, TTL: 60, RemainingTTL: 30}}
	if got, err := decode(encodeKey(1), value); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	key := "6c0000000000000001"
	for _, c := range []struct{ name, key, value, want string }{
		{"short key", "6c01", "01", "want 'l' and 8 bytes"},
		{"other owner", "720000000000000001", "01", "want 'l' and 8 bytes"},
		{"id 0", "6c0000000000000000", "01", "id 0"},
		{"empty", key, "", "empty"},
		{"newer", key, "03000000000000003c00000000000000000000000000000000", "format version 3, this release reads versions up to 2"},
		{"short", key, "02000000000000003c000000000000000000000000000000", "24 bytes long, want 25"},
		{"long", key, "02000000000000003c0000000000000000000000000000000000", "26 bytes long, want 25"},
		{"long first version", key, "01000000000000003c000000000000000000", "18 bytes long, want 17"},
		{"absurd", key, "020000000218711a0100000000000000000000000000000000", "above the maximum"},
		{"before time", key, "02000000000000003c0000000000000001ffffffffffffffff", "negative"},
	} {
		k, _ := hex.DecodeString(c.key)
		v, _ := hex.DecodeString(c.value)
		if l, err := decode(k, v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v, want an error with %q", c.name, l, err, c.want)
		}
	}
	for value, want := range map[string]string{
		"":                     "reads version 1",
		"020000000000000000":   "reads version 1",
		"0100000000000000":     "8 bytes long, want 9",
		"01ffffffffffffffff":   "negative",
		"01000000000000000000": "10 bytes long, want 9",
	} {
		v, _ := hex.DecodeString(value)
		if d, err := decodeClock(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("clock %s: got %v, %v, want an error with %q", value, d, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeKey(1), encode(&record{Lease: Lease{TTL: 60, RemainingTTL: 30}, recorded: 1}))
	f.Add([]byte("l"), []byte{})
	f.Add(encodeKey(0), encodeClock(time.Hour))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if isClock(key) {
			if d, err := decodeClock(value); err == nil && string(encodeClock(d)) != string(value) {
				t.Errorf("%x decodes to %v, which encodes otherwise", value, d)
			}
			return
		}
		r, err := decode(key, value)
		if err != nil {
			return
		}
		if value[0] == firstVersion {
			value = append(append([]byte{formatVersion}, value[1:]...), make([]byte, 8)...)
		}
		if string(encodeKey(r.ID)) != string(key) || string(encode(r)) != string(value) {
			t.Errorf("%x = %x decodes to %+v, which encodes otherwise", key, value, r)
		}
	})
}
