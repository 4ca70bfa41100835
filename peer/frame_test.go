package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/internal/footprint"
	"github.com/coteriedb/coterie/storage/direct"
)

func TestFrames(t *testing.T) {
	m := bulk(1, 2, 3, 300_000)
	b, err := appendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	b = appendNumber(b, framePing, 42)
	b = appendFrame(b, framePong, nil)
	r := newFrameReader(bytes.NewReader(b), maxFrame)
	kind, payload, err := r.next()
	if err != nil || kind != frameMessage {
		t.Fatal(kind, err)
	}
	if got, err := decodeMessage(payload); err != nil || !proto.Equal(got, m) {
		t.Errorf("another message came: %v", err)
	}
	if kind, payload, err := r.next(); err != nil || kind != framePing || binary.LittleEndian.Uint64(payload) != 42 {
		t.Errorf("ping: %d %x %v", kind, payload, err)
	}
	if kind, payload, err := r.next(); err != nil || kind != framePong || len(payload) != 0 {
		t.Errorf("pong: %d %x %v", kind, payload, err)
	}
	if _, _, err := r.next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// Whatever bit changes, the frame is not taken.
func TestFrameDamage(t *testing.T) {
	b, err := appendMessage(nil, message(raftpb.MsgVote, 1, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(b) * 8 {
		damaged := bytes.Clone(b)
		damaged[i/8] ^= 1 << (i % 8)
		if _, _, err := newFrameReader(bytes.NewReader(damaged), maxFrame).next(); err == nil {
			t.Errorf("bit %d changed, and nobody noticed", i)
		}
	}
	for i := 1; i < len(b); i++ {
		if _, _, err := newFrameReader(bytes.NewReader(b[:i]), maxFrame).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

// A length that is claimed costs no memory.
func TestFrameClaims(t *testing.T) {
	head := make([]byte, frameHeaderLen)
	binary.LittleEndian.PutUint32(head[4:], maxFrame)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := newFrameReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("little")), maxFrame).next()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("%d bytes were allocated", got)
	}
	binary.LittleEndian.PutUint32(head[4:], maxFrame+1)
	if _, _, err := newFrameReader(bytes.NewReader(head), maxFrame).next(); !errors.Is(err, errFrameLength) {
		t.Errorf("beyond the bound: %v", err)
	}
}

// A buffer that a large frame needed is not kept.
func TestFrameBuffer(t *testing.T) {
	large := appendFrame(nil, frameMessage, make([]byte, keepBuffer+1))
	r := newFrameReader(io.MultiReader(bytes.NewReader(large), bytes.NewReader(appendFrame(nil, frameMessage, []byte("x")))), maxFrame)
	if _, b, err := r.next(); err != nil || len(b) != keepBuffer+1 {
		t.Fatal(len(b), err)
	}
	if _, b, err := r.next(); err != nil || string(b) != "x" || cap(r.buf) > keepBuffer {
		t.Errorf("%q %v, %d bytes kept", b, err, cap(r.buf))
	}
}

func FuzzFrames(f *testing.F) {
	b, err := appendMessage(nil, bulk(1, 2, 3, 10))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(appendNumber(appendNumber(nil, framePing, 1), framePong, 2))
	f.Add([]byte{0, 0, 0, 0, 255, 255, 255, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newFrameReader(bytes.NewReader(b), maxFrame)
		var again []byte
		for {
			kind, payload, err := r.next()
			if err != nil {
				break
			}
			again = appendFrame(again, kind, payload)
			if m, err := decodeMessage(payload); err == nil && !carried(m.GetType()) {
				t.Errorf("took a message of type %s", m.GetType())
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Error("what was read is not what came")
		}
	})
}

// FuzzMessages decodes what is inside frames, whose checksums fuzzing cannot
// guess.
func FuzzMessages(f *testing.F) {
	for _, m := range []*raftpb.Message{bulk(1, 2, 3, 10), message(raftpb.MsgHup, 1, 2, 3), snapshotMessage(1, 2)} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		if !carried(m.GetType()) {
			t.Errorf("took a message of type %s", m.GetType())
		}
		if sizeOf(m) <= 0 {
			t.Error("it has no size")
		}
	})
}

// When files have been received, a power failure leaves all of them: the log may go on behind what they hold.
func TestReceivedFilesAreDurable(t *testing.T) {
	disk := vfs.NewCrashableMem()
	if err := disk.MkdirAll("/to", 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := disk.OpenDir("/") // that the directory itself is there is for who makes it to see to
	if err == nil {
		err = errors.Join(root.Sync(), root.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	var files []File
	content := map[string][]byte{}
	for i := range syncTogether + 3 {
		name, b := fmt.Sprintf("%06d.sst", i), bytes.Repeat([]byte{byte(i)}, i*1000)
		if i == 1 {
			b = bytes.Repeat([]byte("x"), flushEvery+5)
		}
		content[name] = b
		files = append(files, File{name, int64(len(b))})
		stream.Write(b)
		stream.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)))
	}
	if err := ReceiveFiles(&stream, disk, "/to", files); err != nil {
		t.Fatal(err)
	}
	left := disk.CrashClone(vfs.CrashCloneCfg{})
	for name, want := range content {
		f, err := left.Open("/to/" + name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes are left of %d: %v", name, len(got), len(want), err)
		}
	}
}

// A head that says that it has more files than a snapshot may have is refused before they take memory.
func TestSnapshotHeadOfManyFiles(t *testing.T) {
	head := append(binary.AppendUvarint([]byte{0}, 1<<24), make([]byte, 2<<24)...)
	var err error
	if n := footprint.Of(func() { _, err = decodeSnapshotHead(head) }); n > 1<<20 || err == nil || !strings.Contains(err.Error(), "16777216 files") {
		t.Errorf("%v, and %d bytes", err, n)
	}
}

func FuzzSnapshotHead(f *testing.F) {
	h := &snapshotHead{snapshotMessage(1, 2), []File{{"a", 1}, {"b", 0}}}
	frame, err := h.frame()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame[frameHeaderLen:])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeSnapshotHead(b)
		if err != nil {
			return
		}
		if h.bytes() < 0 {
			t.Errorf("%d bytes", h.bytes())
		}
		for _, file := range h.files {
			if strings.ContainsAny(file.Name, `/\`) || file.Name == ".." {
				t.Errorf("took the name %q", file.Name)
			}
		}
		frame, err := h.frame()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeSnapshotHead(frame[frameHeaderLen:])
		if err != nil || !reflect.DeepEqual(again.files, h.files) || !proto.Equal(again.message, h.message) {
			t.Errorf("encoded and decoded it is another: %v", err)
		}
	})
}

// FuzzSnapshotFiles receives files as a stream brings them. What is written is what came, as long as was announced, and one that
// does not check is refused.
func FuzzSnapshotFiles(f *testing.F) {
	sealed := func(b []byte) []byte {
		return binary.LittleEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
	}
	f.Add(append(sealed([]byte("first")), sealed(nil)...), int64(5), int64(0), false)
	f.Add(append(sealed(make([]byte, 3000)), sealed([]byte("second"))...), int64(3000), int64(6), true)
	f.Add(sealed([]byte("cut")), int64(3), int64(math.MaxInt64/4), false)
	f.Fuzz(func(t *testing.T, b []byte, first, second int64, seal bool) {
		files := []File{{"a", first}, {"b", second}}
		if h := (&snapshotHead{snapshotMessage(1, 2), files}); h.check() != nil {
			return
		}
		if end := first + fileChecksumLen; seal && end <= int64(len(b)) {
			b = append(sealed(b[:first]), b[end:]...)
		}
		dir := t.TempDir()
		var err error
		if n := footprint.Of(func() {
			err = ReceiveFiles(bytes.NewReader(b), direct.New(vfs.Default, received), dir, files)
		}); n > 16<<20 {
			t.Errorf("%d bytes took %d", len(b), n)
		}
		a, readErr := os.ReadFile(filepath.Join(dir, "a"))
		if readErr != nil {
			t.Fatal(readErr)
		}
		if len(a) > 0 && !bytes.HasPrefix(b, a) {
			t.Errorf("%x is written as %x", b, a)
		}
		if err != nil {
			return
		}
		last, readErr := os.ReadFile(filepath.Join(dir, "b"))
		if readErr != nil {
			t.Fatal(readErr)
		}
		if whole := append(sealed(a), sealed(last)...); int64(len(a)) != first || int64(len(last)) != second || !bytes.HasPrefix(b, whole) {
			t.Errorf("%x is taken for %x and %x", b, a, last)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	f.Add("c1", "1", "2", "http://a:1,unix:///b", "v1", "control")
	f.Add("", "-1", "10000000000000000", ",", strings.Repeat("v", 100), "")
	f.Fuzz(func(t *testing.T, cluster, from, to, urls, version, stream string) {
		h := http.Header{}
		for name, v := range map[string]string{
			headerCluster: cluster, headerFrom: from, headerTo: to, headerURLs: urls, headerVersion: version, headerStream: stream,
		} {
			h.Set(name, v)
		}
		if k, err := parseKind(stream); err == nil && k.String() != stream {
			t.Errorf("%q is %s", stream, k)
		}
		g, err := parseGreeting(h)
		if err != nil {
			return
		}
		if len(g.urls) > maxURLs || len(g.version) > maxHeaderText {
			t.Errorf("%d URLs, a version of %d bytes", len(g.urls), len(g.version))
		}
		if again, err := parseGreeting(g.header()); err != nil || !reflect.DeepEqual(again, g) {
			t.Errorf("encoded and decoded %+v is %+v: %v", g, again, err)
		}
		es, _ := parseEndpoints(g.urls)
		for _, e := range es {
			if e.address == "" || e.serverName() == "" {
				t.Errorf("%q leads to %q, server name %q", g.urls, e.address, e.serverName())
			}
		}
	})
}

func FuzzMembers(f *testing.F) {
	f.Add("cdf818194e3a8c32", []byte(`[{"id":1,"peerURLs":["http://a:1"]}]`))
	f.Add("", []byte(`[]`))
	f.Fuzz(func(t *testing.T, cluster string, body []byte) {
		a, err := decodeMembers(cluster, body)
		if (err == nil) != (len(a.Members) > 0) || err != nil && a.ClusterID != 0 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}
