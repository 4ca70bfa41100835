package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/storage/direct"
)

const (
	// received are the files of a snapshot that comes: no one reads them soon.
	received vfs.DiskWriteCategory = "coterie-snapshot"
	// snapshotPiece is what is read, paced and written at once.
	snapshotPiece = 256 << 10
	// flushEvery is how many bytes of a file are received before the disk begins
	// to write them, where they go through the page cache: all at once, at the
	// end, would hold up the log on the same disk.
	flushEvery = 1 << 20
	// syncTogether is how many files are synced one right after another: where a
	// sync of a new file makes the file system commit its journal, which the log
	// waits for, the first of them does that for all.
	syncTogether = 64

	fileChecksumLen = 4
)

// File is a file of a snapshot.
type File struct {
	Name string // in the snapshot's directory
	Size int64  // in bytes
}

// SendFiles writes the files of dir, in pieces: each as its bytes, as many as its
// size, and their CRC-32C (uint32, little-endian).
func SendFiles(w io.Writer, fs vfs.FS, dir string, files []File) error {
	piece := direct.Buffer(snapshotPiece)
	for _, f := range files {
		if err := sendFile(w, fs, filepath.Join(dir, f.Name), f.Size, piece); err != nil {
			return fmt.Errorf("send a snapshot's file %s: %w", f.Name, err)
		}
	}
	return nil
}

// sendFile sends one. Whole pieces are read, from a direct.Buffer.
func sendFile(w io.Writer, fs vfs.FS, name string, size int64, piece []byte) error {
	f, err := direct.Open(fs, name)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	sum := uint32(0)
	for size > 0 {
		b := piece[:min(size, int64(len(piece)))]
		if _, err := io.ReadAtLeast(f, piece, len(b)); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, b)
		if _, err := w.Write(b); err != nil {
			return err
		}
		size -= int64(len(b))
	}
	_, err = w.Write(binary.LittleEndian.AppendUint32(nil, sum))
	return err
}

// ReceiveFiles reads from r what SendFiles writes, into files of dir that are new,
// and makes them and their names durable. After an error dir has some of them.
func ReceiveFiles(r io.Reader, fs vfs.FS, dir string, files []File) (err error) {
	var open []vfs.File
	defer func() {
		for _, f := range open {
			err = errors.Join(err, f.Close())
		}
	}()
	piece := make([]byte, snapshotPiece)
	for _, f := range files {
		if len(open) == syncTogether {
			if open, err = syncAll(open); err != nil {
				return err
			}
		}
		file, err := fs.Create(filepath.Join(dir, f.Name), received)
		if err != nil {
			return err
		}
		file = vfs.NewSyncingFile(file, vfs.SyncingFileOptions{BytesPerSync: flushEvery, NoSyncOnClose: true})
		open = append(open, file)
		if err := receiveFile(r, file, f.Size, piece); err != nil {
			return fmt.Errorf("receive a snapshot's file %s: %w", f.Name, err)
		}
	}
	if open, err = syncAll(open); err != nil {
		return err
	}
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncAll syncs and closes files, and returns those that it has not closed.
func syncAll(files []vfs.File) ([]vfs.File, error) {
	for i, f := range files {
		if err := f.Sync(); err != nil {
			return files[i:], err
		}
		if err := f.Close(); err != nil {
			return files[i+1:], err
		}
	}
	return nil, nil
}

var errFileDamaged = errors.New("it was damaged on its way: its checksum does not match")

// receiveFile writes a file and checks it.
func receiveFile(r io.Reader, f vfs.File, size int64, piece []byte) error {
	sum, written := uint32(0), size
	for size > 0 {
		b := piece[:min(size, int64(len(piece)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, b) // before: a vfs.File may change what it writes
		if _, err := f.Write(b); err != nil {
			return err
		}
		size -= int64(len(b))
	}
	var want [fileChecksumLen]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return err
	}
	if sum != binary.LittleEndian.Uint32(want[:]) {
		return errFileDamaged
	}
	_, err := f.SyncTo(written) // what is still in memory sets out
	return err
}
