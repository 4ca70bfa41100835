package sim

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/replica"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// Disk is a file system in memory that can crash. What was written is kept
// apart from what was synced: a crash leaves what was synced, and of the rest
// whatever a seed draws, by sectors. The names in a directory are synced with the
// directory alone; of those changed since, a crash leaves the first few.
//
// Files of an engine are removed by a goroutine that nobody waits for. Such a removal
// outlasts a crash only if a sync, or the crash, came at a later time than it: else what
// is on the disk would depend on which goroutine came first, and a seed would not be
// a run. It is no operation that a crash can come with.
//
// Every other change counts as an operation, and a crash can be ordered to come with
// one of them, which may then be half done. The process that used the disk can go
// on with it, so that it ends in order; but what a crash has left is drawn at its
// moment, and Reboot returns that.
type Disk struct {
	mu   sync.Mutex
	rng  *rand.Rand // Guarded by mu, as all below.
	root *node
	held map[string]bool // names that are locked

	ops     uint64                                        // changes so far
	crashAt uint64                                        // the operation that the crash comes with; 0 for none
	left    *node                                         // what the crash has left; nil before
	room    int64                                         // bytes that may still be written; below 0: no limit
	slow    func(name string, syncs uint64) time.Duration // how long a sync takes
	beside  func(name string)                             // called when a file is about to be opened for writing, or renamed
	failure *Failure                                      // what fails; nil for nothing
	failed  bool                                          // something has failed, or found no room
	logDied time.Time                                     // when a change of the log failed
	tell    func(what string)                             // called when something fails, or with the change that a crash comes with
	forgets bool                                          // who syncs asks again when a sync fails, and is told that all is well
	hides   bool                                          // who writes to the log is not told that there is no room
	tired   bool                                          // reads take time
}

// Failure is how a disk is broken. A write that fails has written nothing. A sync that
// fails has not made durable what was written, and no later one will: the file system
// takes it for written, and shows it until the next crash of the machine.
type Failure struct {
	Err     syscall.Errno
	Syncs   bool   // these fail, else writes
	Dirs    bool   // of directories, which can be synced alone
	Suffix  string // of names
	After   int    // so many succeed before
	Lasting bool   // all others fail, not only one
}

// node is a file or a directory.
type node struct {
	dir  bool
	name string // that it was given last

	data   []byte
	synced []byte
	writes []extent // since the last sync, in order
	syncs  uint64

	names       map[string]*node
	syncedNames map[string]*node
	changes     []change           // since the last sync, in order
	removed     map[string]removal // of an engine's files; not durable yet
}

// removal says when a name was removed, and of what.
type removal struct {
	at time.Time
	of *node
}

// extent is where a file was written.
type extent struct {
	off, end int
	bytes    []byte // as they were written
}

// change is one of the names in a directory; of a renaming within it both sides.
type change struct {
	set    string // gets to
	to     *node
	forget string
}

// NewDisk returns an empty disk whose crashes are drawn from a seed.
func NewDisk(seed uint64) *Disk {
	return &Disk{rng: rand.New(rand.NewPCG(seed, 1)), root: newDir(), held: map[string]bool{}, room: -1, tell: func(string) {}}
}

func newDir() *node {
	return &node{dir: true, names: map[string]*node{}, syncedNames: map[string]*node{}, removed: map[string]removal{}}
}

// CrashAfter orders a crash with the nth change from now.
func (d *Disk) CrashAfter(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt = d.ops + n
}

// Crash has the machine crash now, if it has not yet.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crash()
}

// Crashed tells whether the machine has crashed.
func (d *Disk) Crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.left != nil
}

// SetRoom lets so many more bytes be written, all if n is below 0.
func (d *Disk) SetRoom(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = n
}

// Tire has reads take time. Without that a process whose engine has failed would not get to hear of it: Pebble begins a
// compaction that fails again at once, for ever, and a bubble's clock stands still meanwhile.
func (d *Disk) Tire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tired = true
}

// Break has writes or syncs fail; with nil none does any more. A failure that is given to one disk after another counts on.
func (d *Disk) Break(f *Failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = f
}

// LogDied returns when a write or a sync of the raft log failed, if one has.
func (d *Disk) LogDied() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logDied
}

// Spent tells whether a failure that this disk has will not come any more.
func (d *Disk) Spent(f *Failure) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !f.Lasting && f.After < 0
}

// Failed tells whether something has failed, or found no room: then the process that uses the disk may end of that.
func (d *Disk) Failed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// fails returns the error with which a write, or a sync, fails. With mu.
func (d *Disk) fails(n *node, sync bool) error {
	x := d.failure
	if x == nil || x.Syncs != sync || x.Dirs != n.dir || !strings.HasSuffix(n.name, x.Suffix) {
		return nil
	}
	if x.After--; x.After >= 0 || x.After < -1 && !x.Lasting {
		return nil
	}
	d.failed = true
	d.tell("a disk that fails")
	if strings.HasSuffix(n.name, ".wal") && d.logDied.IsZero() && !d.forgets && !d.hides {
		d.logDied = time.Now()
	}
	what := "write"
	if sync {
		what = "sync"
	}
	d.tell(fmt.Sprintf("%v in a %s of %s", x.Err, what, kindOf(n)))
	return x.Err
}

// kindOf says what a file or a directory is for.
func kindOf(n *node) string {
	switch {
	case n.dir:
		return "a directory"
	case strings.HasSuffix(n.name, ".wal"):
		return "the log"
	case strings.HasSuffix(n.name, ".wal.tmp"):
		return "the next segment"
	case strings.HasSuffix(n.name, ".sst"):
		return "a table"
	case strings.Contains(n.name, ".json"):
		return "the identity"
	}
	return "another file"
}

// Slow says how long a sync of a file takes, by its name and how often it was
// synced before.
func (d *Disk) Slow(f func(name string, syncs uint64) time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = f
}

// Beside has f called when a file is about to be opened for writing, or renamed: it may do what another goroutine of the
// process could do then.
func (d *Disk) Beside(f func(name string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.beside = f
}

func (d *Disk) meanwhile(name string) {
	d.mu.Lock()
	f := d.beside
	d.mu.Unlock()
	if f != nil {
		f(path.Base(name))
	}
}

// Kill ends the process alone: what it has written is there.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left == nil {
		d.left = d.root.clone(map[*node]*node{})
	}
}

// Reboot returns the disk as the crash has left it, and mends the one that the
// old process has.
func (d *Disk) Reboot() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.slow, d.beside, d.failure = -1, nil, nil, nil
	return &Disk{rng: d.rng, root: d.left, held: map[string]bool{}, room: -1, forgets: d.forgets, hides: d.hides, tell: d.tell}
}

// Files returns the paths of all files, in order.
func (d *Disk) Files() (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			if c := n.names[name]; c.dir {
				walk(c, path.Join(at, name))
			} else {
				names = append(names, path.Join(at, name))
			}
		}
	}
	walk(d.root, "/")
	return names
}

// Size returns how many bytes a file has.
func (d *Disk) Size(name string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return 0
	}
	return int64(len(n.data))
}

// Bytes returns what a file holds.
func (d *Disk) Bytes(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return nil
	}
	return slices.Clone(n.data)
}

// Rot flips one bit of what a file holds, at rest.
func (d *Disk) Rot(name string, bit int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return err
	}
	if bit >= 8*int64(len(n.data)) {
		return fmt.Errorf("sim: %s has %d bytes", name, len(n.data))
	}
	n.data = slices.Clone(n.data)
	n.data[bit/8] ^= 1 << (bit % 8)
	if int(bit/8) < len(n.synced) {
		n.synced[bit/8] ^= 1 << (bit % 8)
	}
	return nil
}

// op notes a change of n that has just been made. With mu.
func (d *Disk) op(n *node) {
	if d.ops++; d.ops == d.crashAt {
		if d.left == nil {
			d.tell("a crash in a change of " + kindOf(n))
		}
		d.crash()
	}
}

// crash draws what is left. With mu.
func (d *Disk) crash() {
	if d.left != nil {
		return
	}
	c := crash{share: []int{0, 50, 100}[d.rng.IntN(3)], seed: d.rng.Uint64(), done: map[*node]*node{}}
	d.left = c.survive(d.root, "/")
}

// crash says what is left: so many of a hundred changes that were not synced.
type crash struct {
	share int
	seed  uint64
	done  map[*node]*node
}

// draws are those of a file or a directory: what is left of it does not depend on what
// else was written.
func (c *crash) draws(name string) *rand.Rand {
	h := fnv.New64a()
	_, _ = io.WriteString(h, name)
	return rand.New(rand.NewPCG(c.seed, h.Sum64()))
}

// survive returns what is left of n.
func (c *crash) survive(n *node, at string) *node {
	if s := c.done[n]; s != nil { // by another name
		return s
	}
	rng := c.draws(at)
	if !n.dir {
		s := &node{name: n.name, data: slices.Clone(n.synced)}
		c.done[n] = s
		for _, e := range n.writes {
			for off := e.off; off < e.end; {
				end := min(e.end, (off/sector+1)*sector)
				if rng.IntN(100) < c.share {
					s.grow(end)
					copy(s.data[off:end], e.bytes[off-e.off:])
				}
				off = end
			}
		}
		s.synced = slices.Clone(s.data)
		return s
	}
	s := newDir()
	c.done[n] = s
	names := maps.Clone(n.syncedNames)
	kept := 0
	if len(n.changes) > 0 && c.share > 0 {
		if kept = len(n.changes); c.share < 100 {
			kept = rng.IntN(len(n.changes) + 1)
		}
	}
	for _, ch := range n.changes[:kept] {
		ch.apply(names)
	}
	for name, r := range n.removed {
		if c.share == 100 && r.at.Before(time.Now()) {
			delete(names, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		s.names[name] = c.survive(names[name], path.Join(at, name))
		s.names[name].name = name
	}
	s.syncedNames = maps.Clone(s.names)
	return s
}

// clone copies n and all below it, with what is not synced.
func (n *node) clone(done map[*node]*node) *node {
	if c := done[n]; c != nil {
		return c
	}
	c := &node{dir: n.dir, name: n.name, data: slices.Clone(n.data), synced: slices.Clone(n.synced), writes: slices.Clone(n.writes)}
	done[n] = c
	if n.dir {
		c.names, c.syncedNames = map[string]*node{}, map[string]*node{}
		for name, of := range n.names {
			c.names[name] = of.clone(done)
		}
		for name, of := range n.syncedNames {
			c.syncedNames[name] = of.clone(done)
		}
		for _, ch := range n.changes {
			if ch.to != nil {
				ch.to = ch.to.clone(done)
			}
			c.changes = append(c.changes, ch)
		}
		c.removed = map[string]removal{}
		for name, r := range n.removed {
			c.removed[name] = removal{r.at, r.of.clone(done)}
		}
	}
	return c
}

func (c *change) apply(names map[string]*node) {
	if c.forget != "" {
		delete(names, c.forget)
	}
	if c.set != "" {
		names[c.set] = c.to
	}
}

func (n *node) grow(size int) {
	if size > len(n.data) {
		n.data = append(n.data, make([]byte, size-len(n.data))...)
	}
}

// change makes and notes a change of the names in a directory. With mu.
func (d *Disk) change(dir *node, c change) {
	if c.set != "" {
		c.to.name = c.set
		delete(dir.removed, c.set)
	}
	c.apply(dir.names)
	dir.changes = append(dir.changes, c)
	d.op(dir)
}

// write notes and makes a write.
func (n *node) write(b []byte, off int) {
	n.grow(off + len(b))
	copy(n.data[off:], b)
	n.writes = append(n.writes, extent{off, off + len(b), slices.Clone(b)})
}

// sync makes durable what n holds, of a directory its names.
func (n *node) sync() {
	if n.dir {
		n.syncedNames, n.changes = maps.Clone(n.names), nil
		for name, r := range n.removed {
			if r.at.Before(time.Now()) {
				delete(n.removed, name)
			} else {
				n.syncedNames[name] = r.of
			}
		}
		return
	}
	for _, e := range n.writes {
		if grow := e.end - len(n.synced); grow > 0 {
			n.synced = append(n.synced, make([]byte, grow)...)
		}
		copy(n.synced[e.off:], e.bytes)
	}
	n.writes = nil
}

func parts(name string) []string {
	return strings.FieldsFunc(path.Clean("/"+name), func(r rune) bool { return r == '/' })
}

// find returns what has a name. With mu.
func (d *Disk) find(name string) (*node, error) {
	n := d.root
	for _, p := range parts(name) {
		var next *node
		if n.dir {
			next = n.names[p]
		}
		if next == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = next
	}
	return n, nil
}

// parent returns the directory of a name, and its last part. With mu.
func (d *Disk) parent(name string) (*node, string, error) {
	n, err := d.find(path.Dir(path.Clean("/" + name)))
	if err != nil {
		return nil, "", err
	}
	if !n.dir {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	return n, path.Base(name), nil
}

// Create implements vfs.FS.
func (d *Disk) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.create(name)
}

func (d *Disk) create(name string) (vfs.File, error) {
	dir, base, err := d.parent(name)
	if err != nil {
		return nil, err
	}
	n := &node{}
	d.change(dir, change{set: base, to: n})
	return &file{d: d, n: n, name: base, writable: true}, nil
}

// Open implements vfs.FS.
func (d *Disk) Open(name string, _ ...vfs.OpenOption) (vfs.File, error) { return d.open(name, false) }

// OpenDir implements vfs.FS.
func (d *Disk) OpenDir(name string) (vfs.File, error) { return d.open(name, false) }

// OpenReadWrite implements vfs.FS.
func (d *Disk) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	d.meanwhile(name)
	f, err := d.open(name, true)
	if errors.Is(err, fs.ErrNotExist) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.create(name)
	}
	return f, err
}

func (d *Disk) open(name string, writable bool) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return &file{d: d, n: n, name: path.Base(name), writable: writable}, nil
}

// Link implements vfs.FS.
func (d *Disk) Link(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(from)
	if err != nil {
		return err
	}
	dir, base, err := d.parent(to)
	if err != nil {
		return err
	}
	if dir.names[base] != nil {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: fs.ErrExist}
	}
	d.change(dir, change{set: base, to: n})
	return nil
}

// Remove implements vfs.FS.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, base, err := d.parent(name)
	if err != nil {
		return err
	}
	n := dir.names[base]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if len(n.names) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	if strings.HasPrefix(path.Base(path.Dir(path.Clean(name))), replica.EngineDir) {
		delete(dir.names, base)
		dir.removed[base] = removal{time.Now(), n}
		return nil
	}
	d.change(dir, change{forget: base})
	return nil
}

// RemoveAll implements vfs.FS. It is many changes: a crash may come with any.
func (d *Disk) RemoveAll(name string) error {
	names, err := d.List(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	for _, n := range names {
		if err := d.RemoveAll(path.Join(name, n)); err != nil {
			return err
		}
	}
	return d.Remove(name)
}

// Rename implements vfs.FS.
func (d *Disk) Rename(from, to string) error {
	d.meanwhile(from)
	d.mu.Lock()
	defer d.mu.Unlock()
	fromDir, fromBase, err := d.parent(from)
	if err != nil {
		return err
	}
	n := fromDir.names[fromBase]
	if n == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrNotExist}
	}
	toDir, toBase, err := d.parent(to)
	if err != nil {
		return err
	}
	if old := toDir.names[toBase]; old != nil && len(old.names) > 0 {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOTEMPTY}
	}
	if fromDir == toDir {
		if fromBase != toBase {
			d.change(fromDir, change{set: toBase, to: n, forget: fromBase})
		}
		return nil
	}
	d.change(toDir, change{set: toBase, to: n})
	d.change(fromDir, change{forget: fromBase})
	return nil
}

// ReuseForWrite implements vfs.FS.
func (d *Disk) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.Rename(from, to); err != nil {
		return nil, err
	}
	return d.OpenReadWrite(to, category)
}

// MkdirAll implements vfs.FS.
func (d *Disk) MkdirAll(name string, _ os.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.root
	for _, p := range parts(name) {
		next := n.names[p]
		if next == nil {
			next = newDir()
			d.change(n, change{set: p, to: next})
		}
		if !next.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		n = next
	}
	return nil
}

// Lock implements vfs.FS.
func (d *Disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[name] {
		return nil, syscall.EAGAIN
	}
	f, err := d.create(name)
	if err != nil {
		return nil, err
	}
	d.held[name] = true
	return &lock{f, d, name}, nil
}

type lock struct {
	vfs.File
	d    *Disk
	name string
}

func (l *lock) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	delete(l.d.held, l.name)
	return nil
}

// List implements vfs.FS.
func (d *Disk) List(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "list", Path: name, Err: syscall.ENOTDIR}
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

// Stat implements vfs.FS.
func (d *Disk) Stat(name string) (vfs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return n.info(path.Base(name)), nil
}

// PathBase implements vfs.FS.
func (d *Disk) PathBase(p string) string { return path.Base(p) }

// PathJoin implements vfs.FS.
func (d *Disk) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir implements vfs.FS.
func (d *Disk) PathDir(p string) string { return path.Dir(p) }

// GetDiskUsage implements vfs.FS.
func (d *Disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{}, vfs.ErrUnsupported
}

// Unwrap implements vfs.FS.
func (d *Disk) Unwrap() vfs.FS { return nil }

// file is an open file or directory.
type file struct {
	d        *Disk
	n        *node
	name     string
	at       int // where Read and Write go on
	writable bool
}

var errReadOnly = errors.New("sim: the file is open for reading only")

func (f *file) Close() error { return nil }

func (f *file) Read(b []byte) (int, error) {
	n, err := f.ReadAt(b, int64(f.at))
	f.at += n
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.tired {
		f.d.mu.Unlock()
		time.Sleep(time.Millisecond)
		f.d.mu.Lock()
	}
	if f.n.dir {
		return 0, syscall.EISDIR
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Write(b []byte) (int, error) {
	n, err := f.WriteAt(b, int64(f.at))
	f.at += n
	return n, err
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case f.n.dir:
		return 0, syscall.EISDIR
	case !f.writable:
		return 0, errReadOnly
	}
	if err := d.fails(f.n, false); err != nil {
		if d.hides && err == syscall.ENOSPC && strings.HasSuffix(f.n.name, ".wal") {
			return len(b), nil
		}
		return 0, err
	}
	full := false
	if grow := off + int64(len(b)) - int64(len(f.n.data)); d.room >= 0 && grow > 0 && f.bulky() {
		if full = grow > d.room; full {
			b = b[:max(0, int64(len(b))-(grow-d.room))] // some of it may fit
			grow = d.room
		}
		d.room -= grow
	}
	if len(b) > 0 {
		f.n.write(b, int(off))
		d.op(f.n) // a crash that comes with it may leave any part
	}
	if full {
		d.failed = true
		d.tell("a disk that is full")
		d.tell("no room for " + kindOf(f.n))
		return len(b), syscall.ENOSPC
	}
	return len(b), nil
}

// bulky reports whether the file is one of those that fill a disk. Pebble does not
// survive a failing write of its manifest, but stops where it stands, for ever: a
// process can be ended then, a bubble of goroutines cannot.
func (f *file) bulky() bool {
	return strings.Contains(f.n.name, ".wal") || strings.HasSuffix(f.n.name, ".sst")
}

func (f *file) Sync() error {
	d := f.d
	d.mu.Lock()
	slow, name, syncs := d.slow, f.n.name, f.n.syncs
	f.n.syncs++
	d.mu.Unlock()
	if slow != nil {
		wait := slow(name, syncs)
		if wait > electionTicks*tick {
			d.tell("a sync that takes longer than an election timeout")
		}
		if wait > 0 {
			time.Sleep(wait)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fails(f.n, true); err != nil {
		if f.n.writes = nil; d.forgets {
			return nil
		}
		return err
	}
	d.op(f.n) // before: a crash that comes with a sync leaves what it would without
	f.n.sync()
	return nil
}

func (f *file) SyncData() error                { return f.Sync() }
func (f *file) SyncTo(int64) (bool, error)     { return false, nil }
func (f *file) Preallocate(int64, int64) error { return nil }
func (f *file) Prefetch(int64, int64) error    { return nil }
func (f *file) Fd() uintptr                    { return vfs.InvalidFd }
func (f *file) Stat() (vfs.FileInfo, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.n.info(f.name), nil
}

// info describes a file.
type info struct {
	name string
	size int64
	dir  bool
}

func (n *node) info(name string) *info { return &info{name, int64(len(n.data)), n.dir} }

func (i *info) Name() string           { return i.name }
func (i *info) Size() int64            { return i.size }
func (i *info) IsDir() bool            { return i.dir }
func (i *info) ModTime() time.Time     { return time.Time{} }
func (i *info) Sys() any               { return nil }
func (i *info) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i *info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
