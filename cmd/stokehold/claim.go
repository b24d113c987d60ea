package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stokehold/stokehold/cmd/internal/report"
)

// claimFile tells which demo a state directory belongs to.
const claimFile = "demo.json"

type claimed struct {
	Source string `json:"source"`
	SHA256 string `json:"sha256"`
	Seed   uint64 `json:"seed"`
}

// claim makes dir the state of the demo of that data and seed. One that began
// with others cannot go on with these: what it has stored stays, and the outcome
// would be that of neither.
func claim(dir string, data report.Data, seed uint64) error {
	path := filepath.Join(dir, claimFile)
	want := claimed{data.Source, data.SHA256, seed}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeClaim(path, want)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var have claimed
	if err := json.Unmarshal(raw, &have); err != nil {
		return fmt.Errorf("state directory: %s: %w: choose another --state", path, err)
	}
	switch {
	case have.SHA256 != want.SHA256:
		return fmt.Errorf("the demo in %s began with other data, %s, and cannot go on with %s: give it that or choose another --state", dir, have.Source, want.Source)
	case have.Seed != want.Seed:
		return fmt.Errorf("the demo in %s began with --seed %d and cannot go on with %d: give it that or choose another --state", dir, have.Seed, want.Seed)
	}
	return nil
}

// writeClaim writes the file as a whole or not at all: a kill may come between.
func writeClaim(path string, c claimed) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+claimFile+"-*")
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
