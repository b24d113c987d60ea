// Package python carries the Python package stokehold, so that a Go program can
// run stages in Python with the SDK of its own version. The interpreter needs
// pyarrow; a stage may need more.
package python

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed src/stokehold/*.py src/stokehold/py.typed
var files embed.FS

// SDK is the source of the package, with the directory stokehold at its root.
func SDK() fs.FS {
	sub, err := fs.Sub(files, "src")
	if err != nil {
		panic(err) // cannot: the directory is embedded
	}
	return sub
}

// Install writes a tree of Python files, such as SDK, below dir, for PYTHONPATH.
// Files that are there are replaced.
func Install(dir string, tree fs.FS) error {
	return fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		to := filepath.Join(dir, filepath.FromSlash(name))
		switch {
		case err != nil:
			return fmt.Errorf("python: install: %w", err)
		case d.IsDir():
			err = os.MkdirAll(to, 0o700)
		default:
			var b []byte
			if b, err = fs.ReadFile(tree, name); err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
		}
		if err != nil {
			return fmt.Errorf("python: install: %w", err)
		}
		return nil
	})
}
