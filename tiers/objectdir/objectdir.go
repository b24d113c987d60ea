// Package objectdir keeps objects as files of a local directory: a cold tier for
// machines without S3, and for tests. Unlike an embedded gateway it syncs.
package objectdir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// MaxObjectBytes is the largest object.
const MaxObjectBytes = 1 << 30

const tempPrefix = ".put-"

// Store implements tiers.ObjectStore and each of its optional powers. Safe for
// concurrent use, also by several processes.
type Store struct{ dir string }

var (
	_ tiers.ObjectStore    = (*Store)(nil)
	_ tiers.Syncer         = (*Store)(nil)
	_ tiers.RangeReader    = (*Store)(nil)
	_ tiers.Filler         = (*Store)(nil)
	_ tiers.AbsentPutter   = (*Store)(nil)
	_ tiers.PartialSweeper = (*Store)(nil)
	_ tiers.Clock          = (*Store)(nil)
	_ tiers.Guarantor      = (*Store)(nil)
)

// Open uses dir, which is created with mode 0700 if it is missing.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("objectdir: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("objectdir: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Syncs reports true: Put returns when the object is on disk.
func (s *Store) Syncs() bool { return true }

// URI is the file:// URI of the object's file.
func (s *Store) URI(key string) string {
	return (&url.URL{Scheme: "file", Path: filepath.Join(s.dir, filepath.FromSlash(key))}).String()
}

func (s *Store) path(op, key string) (string, error) {
	if err := tiers.CheckKey(key); err != nil {
		return "", fmt.Errorf("objectdir: %s: %w", op, err)
	}
	return filepath.Join(s.dir, filepath.FromSlash(key)), nil
}

// Guarantees implements tiers.Guarantor: what a local file system keeps. Hashes
// are compared before the file gets its name.
func (s *Store) Guarantees() tiers.Guarantees {
	return tiers.Guarantees{
		Syncs: true, ConditionalPut: true, MostWinners: 1, ConditionalMultipart: true,
		ReadAfterWrite: true, ListAfterWrite: true, Checksums: []string{"SHA256"},
	}
}

// Put implements tiers.ObjectStore. If key names a SHA-256 (tiers.KeySum) and body
// has another, the error wraps arrowio.ErrCorrupt and nothing is stored.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
	return s.store(ctx, key, body, os.Rename)
}

// PutIfAbsent implements tiers.AbsentPutter; of several concurrent calls, also of
// several processes, one wins.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	err := s.store(ctx, key, body, func(temp, path string) error {
		if err := os.Link(temp, path); err != nil {
			return err
		}
		return os.Remove(temp)
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("objectdir: put %s: %w", key, tiers.ErrExists)
	}
	return err
}

// store writes body; name gives the whole file its name.
func (s *Store) store(ctx context.Context, key string, body []byte, name func(temp, path string) error) error {
	path, err := s.path("put", key)
	if err != nil {
		return err
	}
	if len(body) > MaxObjectBytes {
		return fmt.Errorf("objectdir: put %s of %d bytes, at most %d: %w", key, len(body), int64(MaxObjectBytes), tiers.ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("objectdir: put %s: %w", key, err)
	}
	if want, ok := tiers.KeySum(key); ok {
		if got := sha256.Sum256(body); got != want {
			return fmt.Errorf("objectdir: put %s: %w: its SHA-256 is %x", key, arrowio.ErrCorrupt, got)
		}
	}
	if err := s.put(ctx, path, body, name); err != nil {
		return fmt.Errorf("objectdir: put %s: %w", key, err)
	}
	return nil
}

// writeBytes is written between looks at the context.
const writeBytes = 4 << 20

func (s *Store) put(ctx context.Context, path string, body []byte, name func(temp, path string) error) error {
	if err := s.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	for rest := body; err == nil && len(rest) > 0; {
		n := min(len(rest), writeBytes)
		if _, err = f.Write(rest[:n]); err == nil {
			rest, err = rest[n:], ctx.Err()
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = name(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// mkdir makes dir and syncs each directory that gained one.
func (s *Store) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return syncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && dir != s.dir:
		if err := s.mkdir(filepath.Dir(dir)); err != nil {
			return err
		}
		return s.mkdir(dir)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements tiers.ObjectStore.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	path, err := s.path("get", key)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("objectdir: get %s: %w", key, err)
	}
	body, err := read(path)
	if err != nil {
		return nil, failed("get", key, err)
	}
	return body, nil
}

func read(path string) (body []byte, err error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size > MaxObjectBytes {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", size, int64(MaxObjectBytes), tiers.ErrTooLarge)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(f, body)
	return body, err
}

// readBytes is read before it is hashed: it is in the processor's cache then.
const readBytes = 256 << 10

// Fill implements tiers.Filler.
func (s *Store) Fill(ctx context.Context, key string, dst []byte, sum hash.Hash) (n int, err error) {
	path, err := s.path("get", key)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("objectdir: get %s: %w", key, err)
	}
	f, size, err := open(path)
	if err != nil {
		return 0, failed("get", key, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size > int64(len(dst)) {
		return 0, fmt.Errorf("objectdir: get %s: %d bytes, there is room for %d: %w", key, size, len(dst), tiers.ErrTooLarge)
	}
	for int64(n) < size {
		if err := ctx.Err(); err != nil {
			return n, fmt.Errorf("objectdir: get %s: %w", key, err)
		}
		piece := dst[n:min(int64(n)+readBytes, size)]
		if _, err := io.ReadFull(f, piece); err != nil {
			return n, failed("get", key, err)
		}
		if sum != nil {
			_, _ = sum.Write(piece) // never fails
		}
		n += len(piece)
	}
	return n, nil
}

// open opens a regular file, not through a link.
func open(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// ReadRange implements tiers.RangeReader.
func (s *Store) ReadRange(ctx context.Context, key string, offset int64, dst []byte) (n int, err error) {
	path, err := s.path("read", key)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("objectdir: read %s: %w", key, err)
	}
	if offset < 0 {
		return 0, fmt.Errorf("objectdir: read %s: %w: offset %d", key, tiers.ErrName, offset)
	}
	f, _, err := open(path)
	if err != nil {
		return 0, failed("read", key, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err = f.ReadAt(dst, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("objectdir: read %s: %w", key, err)
	}
	return n, err
}

// failed gives an error its sentinel.
func failed(op, key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		err = tiers.ErrNotFound
	}
	return fmt.Errorf("objectdir: %s %s: %w", op, key, err)
}

// Now implements tiers.Clock: the file system's time, which may be a server's.
func (s *Store) Now(context.Context) (now time.Time, err error) {
	f, err := os.CreateTemp(s.dir, tempPrefix+"*")
	if err != nil {
		return now, fmt.Errorf("objectdir: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	info, err := f.Stat()
	if err != nil {
		return now, fmt.Errorf("objectdir: %w", err)
	}
	return info.ModTime(), nil
}

// SweepPartial implements tiers.PartialSweeper: files whose writing a crash cut off.
func (s *Store) SweepPartial(ctx context.Context, grace time.Duration) (removed int, err error) {
	now, err := s.Now(ctx)
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(d.Name(), tempPrefix) {
			return err
		}
		info, err := d.Info()
		if err == nil && now.Sub(info.ModTime()) >= grace {
			if err = os.Remove(path); err == nil {
				removed++
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return removed, fmt.Errorf("objectdir: sweep: %w", err)
	}
	return removed, nil
}

// Delete implements tiers.ObjectStore.
func (s *Store) Delete(ctx context.Context, key string) error {
	path, err := s.path("delete", key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("objectdir: delete %s: %w", key, err)
	}
	err = os.Remove(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("objectdir: delete %s: %w", key, err)
	}
	return nil
}

// List implements tiers.ObjectStore.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[tiers.ObjectInfo, error] {
	return func(yield func(tiers.ObjectInfo, error) bool) {
		stop := errors.New("stop")
		err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // deleted meanwhile
			}
			if err != nil || d.IsDir() || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), tempPrefix) {
				return err
			}
			rel, err := filepath.Rel(s.dir, path)
			if err != nil {
				return err
			}
			key := filepath.ToSlash(rel)
			if !strings.HasPrefix(key, prefix) {
				return nil
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !yield(tiers.ObjectInfo{Key: key, Bytes: info.Size(), Modified: info.ModTime()}, nil) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(tiers.ObjectInfo{}, fmt.Errorf("objectdir: list %s: %w", prefix, err))
		}
	}
}
