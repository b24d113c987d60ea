// Package objectdir keeps objects as files of a local directory: a cold tier for
// machines without S3, and for tests. Unlike an embedded gateway it syncs.
package objectdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/tiers"
)

// MaxObjectBytes is the largest object.
const MaxObjectBytes = 1 << 30

const tempPrefix = ".put-"

// Store implements tiers.ObjectStore and tiers.Syncer. Safe for concurrent use,
// also by several processes.
type Store struct{ dir string }

var (
	_ tiers.ObjectStore = (*Store)(nil)
	_ tiers.Syncer      = (*Store)(nil)
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

// Put implements tiers.ObjectStore.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
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
	if err := s.put(path, body); err != nil {
		return fmt.Errorf("objectdir: put %s: %w", key, err)
	}
	return nil
}

func (s *Store) put(path string, body []byte) error {
	if err := s.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
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
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("objectdir: get %s: %w", key, tiers.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("objectdir: get %s: %w", key, err)
	}
	return body, nil
}

func read(path string) (body []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	if info.Size() > MaxObjectBytes {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", info.Size(), int64(MaxObjectBytes), tiers.ErrTooLarge)
	}
	body = make([]byte, info.Size())
	_, err = io.ReadFull(f, body)
	return body, err
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
