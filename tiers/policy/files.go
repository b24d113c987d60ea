package policy

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"

	"github.com/stokehold/stokehold/governance"
)

// Files keeps the policies of files and directories, and takes in what changes
// there. Safe for concurrent use.
type Files struct {
	paths []string
	more  []governance.Source
	log   *slog.Logger

	mu     sync.Mutex
	set    *Set
	digest [sha256.Size]byte // of what was read last, good or bad
	err    error             // of that; nil: set is it
}

// Open reads and compiles the policies of files and directories, and those that come
// with the program. Without any the set is empty. The error is that of Parse.
func Open(log *slog.Logger, more []governance.Source, paths ...string) (*Files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Files{paths: paths, more: more, log: log}
	srcs, digest, err := f.read()
	if err != nil {
		return nil, err
	}
	if f.set, err = Parse(srcs...); err != nil {
		return nil, err
	}
	f.digest = digest
	return f, nil
}

func (f *Files) read() (srcs []governance.Source, digest [sha256.Size]byte, err error) {
	if srcs, err = governance.ReadPaths(f.paths...); err != nil {
		return nil, digest, err
	}
	srcs = append(srcs, f.more...)
	sum := sha256.New()
	for _, s := range srcs {
		fmt.Fprintf(sum, "%q %d ", s.Name, len(s.Data))
		sum.Write(s.Data)
	}
	sum.Sum(digest[:0])
	return srcs, digest, nil
}

// Set returns the policies in force: those in the files now, or, while these are
// faulty, the last that were not. The fault is logged once, and Err tells it.
func (f *Files) Set() *Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	srcs, digest, err := f.read()
	if err == nil && digest == f.digest {
		return f.set
	}
	var set *Set
	if err == nil {
		set, err = Parse(srcs...)
	}
	if err != nil {
		if f.err == nil || f.err.Error() != err.Error() {
			f.log.Error("the tier policies are faulty: the last good ones stay in force", "error", err)
		}
		f.err = err
		return f.set
	}
	f.log.Info("tier policies are read", "policies", set.Len())
	f.set, f.digest, f.err = set, digest, nil
	return set
}

// Err is why the files as they are now are not in force, as of the last Set; nil if they are.
func (f *Files) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
