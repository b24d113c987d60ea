package models

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/tiers"
)

// artifacts keeps the bytes of versions by their SHA-256: in a local directory,
// synced, and in the cold tier if there is one.
type artifacts struct {
	dir  string
	cold tiers.ObjectStore
}

func openArtifacts(dir string, cold tiers.ObjectStore) (*artifacts, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	return &artifacts{dir: dir, cold: cold}, nil
}

func (a *artifacts) path(id string) string { return filepath.Join(a.dir, id[:2], id) }

func coldKey(id string) string { return "models/sha256/" + id[:2] + "/" + id }

// put stores an artifact whose hash is id where it is not yet, or is damaged.
func (a *artifacts) put(ctx context.Context, id string, raw []byte) error {
	if _, err := a.local(id); err != nil {
		if err := a.write(id, raw); err != nil {
			return err
		}
	}
	if a.cold == nil {
		return nil
	}
	if got, err := a.cold.Get(ctx, coldKey(id)); err == nil && digestOf(got) == id {
		return nil
	}
	if err := a.cold.Put(ctx, coldKey(id), raw); err != nil {
		return fmt.Errorf("store artifact: %w", err)
	}
	return nil
}

// get returns the bytes whose hash is id, and mends the local copy if it had to
// ask the cold tier.
func (a *artifacts) get(ctx context.Context, id string) ([]byte, error) {
	if len(id) != idDigits {
		return nil, fmt.Errorf("%w: %.80q is not a version's id", ErrInvalid, id)
	}
	raw, err := a.local(id)
	if err == nil {
		return raw, nil
	}
	if a.cold == nil {
		return nil, err
	}
	raw, coldErr := a.cold.Get(ctx, coldKey(id))
	if coldErr == nil && digestOf(raw) != id {
		coldErr = fmt.Errorf("%w: SHA-256 of %s is %s", ErrArtifact, a.cold.URI(coldKey(id)), digestOf(raw))
	}
	if coldErr != nil {
		return nil, errors.Join(err, coldErr)
	}
	if err := a.write(id, raw); err != nil {
		return nil, fmt.Errorf("mend the local copy: %w", err)
	}
	return raw, nil
}

func (a *artifacts) local(id string) (raw []byte, err error) {
	path := a.path(id)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: no artifact %s", ErrNotFound, path)
		}
		return nil, fmt.Errorf("%w: %w", ErrArtifact, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > MaxArtifactBytes {
		return nil, fmt.Errorf("%w: %s is no file of at most %d bytes", ErrArtifact, path, int64(MaxArtifactBytes))
	}
	raw = make([]byte, info.Size())
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != id {
		return nil, fmt.Errorf("%w: SHA-256 of %s is %s", ErrArtifact, path, got)
	}
	return raw, nil
}

// write makes the file durable under its name; whoever sees it sees it whole.
func (a *artifacts) write(id string, raw []byte) error {
	path := a.path(id)
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err == nil {
		err = syncDir(a.dir)
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.CreateTemp(dir, ".put-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
