package tiers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
)

const (
	warmExt  = ".arrow"
	stageDir = ".stage"
	lockName = ".lock"
)

// warm is a directory of framed batches, one file each:
//
//	DIR/DATASET/SEQUENCE-SHA256.arrow
//
// A name holds the content's hash, so two attempts at one sequence never write
// the same name with different bytes; it also holds the batch, so a file belongs
// to one batch and can be removed without counting references. Files appear
// whole: they are written and synced under DIR/.stage and then linked.
type warm struct {
	dir  string
	lock *os.File // held shared; who gets it exclusively is alone and may clear .stage
	// written counts the bytes of files that were given their names.
	written atomic.Int64

	mu   sync.Mutex
	maps map[string]*mapping // by path
}

func openWarm(dir string) (*warm, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, stageDir), 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	w := &warm{dir: dir, lock: lock, maps: map[string]*mapping{}}
	if err := w.clearStage(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return w, nil
}

// clearStage removes what a crash left half-written, unless another store works
// in the directory at this moment.
func (w *warm) clearStage() error {
	fd := int(w.lock.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		left, err := os.ReadDir(filepath.Join(w.dir, stageDir))
		if err != nil {
			return err
		}
		for _, f := range left {
			if err := os.Remove(filepath.Join(w.dir, stageDir, f.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Flock(fd, unix.LOCK_SH)
}

func (w *warm) close() { _ = w.lock.Close() } // nothing was written to it

// staged is a file written and synced that has no name of its own yet.
type staged struct {
	warm     *warm
	tmp      string
	path     string
	location arrowio.Location
}

// stage writes content and syncs it. commit gives it its name, discard removes it;
// one of them must be called.
func (w *warm) stage(ctx context.Context, dataset string, seq uint64, content io.WriterTo) (_ *staged, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Join(w.dir, stageDir), fmt.Sprintf("%d-*", seq)) // 0600
	if err != nil {
		return nil, err
	}
	s := &staged{warm: w, tmp: f.Name()}
	sum := newYieldingHash()
	out := bufio.NewWriterSize(f, 64<<10) // a frame's padding comes in small pieces
	n, err := content.WriteTo(io.MultiWriter(sum, out))
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.discard()
		return nil, fmt.Errorf("write warm copy: %w", err)
	}
	digest := sum.text()
	if s.path, err = w.path(dataset, seq, digest); err != nil {
		s.discard()
		return nil, err
	}
	uri, err := arrowio.FileURI(s.path)
	if err != nil {
		s.discard()
		return nil, err
	}
	s.location = arrowio.Location{Tier: arrowio.Warm, URI: uri, Bytes: n, SHA256: digest, Codec: "arrow-ipc"}
	return s, nil
}

// commit makes the file durable under its name. A file of that name is the same
// file.
func (s *staged) commit() error {
	dir := filepath.Dir(s.path)
	if err := os.Mkdir(dir, 0o700); err == nil {
		if err := syncDir(s.warm.dir); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Rename, and not link: a file of that name that was damaged on disk since is
	// replaced by a good one.
	if err := os.Rename(s.tmp, s.path); err != nil {
		return err
	}
	s.tmp = ""
	s.warm.written.Add(s.location.Bytes)
	return syncDir(dir)
}

func (s *staged) discard() {
	if s.tmp != "" {
		_ = os.Remove(s.tmp) // if it stays, the next store that is alone clears it
		s.tmp = ""
	}
}

func (w *warm) path(dataset string, seq uint64, digest string) (string, error) {
	name, err := token("dataset", dataset)
	if err != nil {
		return "", err
	}
	if len(digest) != 2*sha256.Size || strings.Trim(digest, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: %.80q is not a SHA-256", arrowio.ErrCorrupt, digest)
	}
	return filepath.Join(w.dir, name, fmt.Sprintf("%020d-%s%s", seq, digest, warmExt)), nil
}

// mapping is a warm file mapped read-only and found to have its hash.
type mapping struct {
	warm  *warm
	path  string
	data  []byte
	users int           // guarded by warm.mu
	ready chan struct{} // closed when data and err are final
	err   error
}

// open maps the file of a batch. Its hash is verified once per mapping, which
// all concurrent readers share. release must be called once. The error wraps
// arrowio.ErrGone or arrowio.ErrCorrupt.
func (w *warm) open(ref arrowio.Ref, loc arrowio.Location) (data []byte, release func(), err error) {
	// The path is computed, not taken from the URI: the catalog can then name no
	// file outside, and a state directory may be moved.
	path, err := w.path(ref.Dataset, ref.Sequence, loc.SHA256)
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	m, ok := w.maps[path]
	if !ok {
		m = &mapping{warm: w, path: path, ready: make(chan struct{})}
		w.maps[path] = m
	}
	m.users++
	w.mu.Unlock()
	if !ok {
		m.data, m.err = mapVerified(path, loc)
		close(m.ready)
	}
	<-m.ready
	if m.err != nil {
		m.release()
		return nil, nil, m.err
	}
	var once sync.Once
	return m.data, func() { once.Do(m.release) }, nil
}

func (m *mapping) release() {
	m.warm.mu.Lock()
	m.users--
	last := m.users == 0
	if last {
		delete(m.warm.maps, m.path)
	}
	m.warm.mu.Unlock()
	if last && m.data != nil {
		_ = unix.Munmap(m.data) // fails only for an address that is not a mapping
	}
}

func mapVerified(path string, loc arrowio.Location) (data []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no file %s", arrowio.ErrGone, path)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != loc.Bytes || loc.Bytes <= 0 || loc.Bytes > MaxBatchBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, %d expected", arrowio.ErrCorrupt, path, info.Size(), loc.Bytes)
	}
	data, err = unix.Mmap(int(f.Fd()), 0, int(loc.Bytes), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	if err := verifyDigest(data, loc.SHA256); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Munmap(data))
	}
	return data, nil
}

// verifyDigest turns a page that the disk cannot give (SIGBUS) into an error,
// like any other difference from what was written.
func verifyDigest(data []byte, want string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: unreadable: %v", arrowio.ErrCorrupt, p)
		}
	}()
	if got := digestOf(data); got != want {
		return fmt.Errorf("%w: SHA-256 is %s, %s expected", arrowio.ErrCorrupt, got, want)
	}
	return nil
}

// digestOf is the SHA-256 of b in hexadecimal.
func digestOf(b []byte) string {
	sum := newYieldingHash()
	_, _ = sum.Write(b) // never fails
	return sum.text()
}

// yieldingHash is SHA-256 that yields on the way: the function cannot be interrupted,
// and 16 MiB of it in one piece would keep whoever waits for a timer or a message
// waiting for 14 ms.
type yieldingHash struct {
	hash.Hash
	since int // bytes since it yielded
}

func newYieldingHash() *yieldingHash { return &yieldingHash{Hash: sha256.New()} }

func (h *yieldingHash) Write(b []byte) (int, error) {
	hashing.Add(1)
	defer hashing.Add(-1)
	for rest := b; len(rest) > 0; {
		if h.since >= digestPiece {
			// While a processor is left, others have it: to yield would only have this
			// go on there, with cold caches.
			if hashing.Load() >= int64(runtime.GOMAXPROCS(0)) {
				runtime.Gosched()
			}
			h.since = 0
		}
		n := min(len(rest), digestPiece-h.since)
		_, _ = h.Hash.Write(rest[:n]) // never fails
		h.since += n
		rest = rest[n:]
	}
	return len(b), nil
}

// hashing is how many goroutines of this process are at it.
var hashing atomic.Int64 //nolint:gochecknoglobals // the processors are the process's, too

// text is the sum in hexadecimal.
func (h *yieldingHash) text() string { return hex.EncodeToString(h.Sum(nil)) }

// digestPiece takes about 0.2 ms.
const digestPiece = 256 << 10

// remove deletes the file of a batch; readers that have it mapped keep it.
func (w *warm) remove(dataset string, seq uint64, digest string) error {
	path, err := w.path(dataset, seq, digest)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mapped reports whether a reader of this process has the file of a batch mapped.
func (w *warm) mapped(dataset string, seq uint64, digest string) bool {
	path, err := w.path(dataset, seq, digest)
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.maps[path] != nil
}

// files calls visit with each file of a dataset, a bounded number in memory.
func (w *warm) files(dataset string, visit func(seq uint64, digest string) error) error {
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Join(w.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only read
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			var seq uint64
			stem, ok := strings.CutSuffix(n, warmExt)
			num, digest, ok2 := strings.Cut(stem, "-")
			if !ok || !ok2 {
				continue
			}
			if _, err := fmt.Sscanf(num, "%d", &seq); err != nil {
				continue
			}
			if err := visit(seq, digest); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
