package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// cache is what a process keeps on its disk of the bundles of one name: the last
// good one, and how far the order has come. The second is written first: it is
// what an old stream or an old bundle is told by, also once the keys that signed
// the copy are no longer trusted.
type cache struct{ dir, name string }

type floorFile struct {
	Epoch   uint64 `json:"epoch"`
	Version uint64 `json:"version"`
	// Manifest is the SHA-256 of the manifest, so that another bundle of the same
	// version is told.
	Manifest string `json:"manifest"`
}

func (c cache) copyPath() string  { return filepath.Join(c.dir, "policies-"+c.name+".bundle") }
func (c cache) floorPath() string { return filepath.Join(c.dir, "policies-"+c.name+".floor") }

// floor returns how far this process has come; the zero Position: nowhere.
func (c cache) floor() (floorFile, error) {
	var f floorFile
	if c.dir == "" {
		return f, nil
	}
	raw, err := readSmall(c.floorPath(), 4<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		err = dec.Decode(&f)
	}
	if err != nil {
		return f, fmt.Errorf("%s: %w: the file says how far the policies have come; put it back from a backup, or remove it if a roll-back is out of the question", c.floorPath(), err)
	}
	return f, nil
}

// bundle returns the last good bundle, verified. Without one the error wraps
// ErrNotFound.
func (c cache) bundle(t *Trust) (*Bundle, error) {
	if c.dir == "" {
		return nil, ErrNotFound
	}
	raw, err := readSmall(c.copyPath(), MaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no copy in %s", ErrNotFound, c.dir)
	}
	if err != nil {
		return nil, err
	}
	b, err := Open(raw, t)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.copyPath(), err)
	}
	if b.Name != c.name {
		return nil, fmt.Errorf("%s: %w", c.copyPath(), &FormatError{Msg: "it is of the name " + b.Name})
	}
	return b, nil
}

// keep stores the floor and the copy.
func (c cache) keep(b *Bundle) error {
	if c.dir == "" {
		return nil
	}
	raw, err := json.Marshal(floorFile{b.Position.Epoch, b.Position.Version, b.fingerprint()})
	if err == nil {
		err = replace(c.floorPath(), append(raw, '\n'))
	}
	if err == nil {
		err = replace(c.copyPath(), b.raw)
	}
	if err != nil {
		return fmt.Errorf("keep a copy of policy bundle %s: %w", b.Name, err)
	}
	return nil
}

func readSmall(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%w: %s is no file of up to %d bytes", ErrTooLarge, path, limit)
	}
	return os.ReadFile(path)
}
