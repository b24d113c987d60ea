package bundle

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/stokehold/stokehold/governance"
)

// Suffix ends the names of files that hold a bundle.
const Suffix = ".bundle"

// ReadSources reads policy files and directories as governance.ReadPaths does, and
// names each for a bundle: by its own name, or with its directory's where two are
// of one name.
func ReadSources(paths ...string) ([]governance.Source, error) {
	srcs, err := governance.ReadPaths(paths...)
	if err != nil {
		return nil, err
	}
	times := map[string]int{}
	base := func(s governance.Source) string { return path.Base(filepath.ToSlash(s.Name)) }
	for _, s := range srcs {
		times[base(s)]++
	}
	for i, s := range srcs {
		name := base(s)
		if times[name] > 1 {
			dir, err := filepath.Abs(filepath.Dir(s.Name))
			if err != nil {
				return nil, err
			}
			name = strings.TrimPrefix(path.Base(filepath.ToSlash(dir))+"/"+name, "/")
		}
		srcs[i].Name = name
	}
	return srcs, nil
}
