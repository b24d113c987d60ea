package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// ErrNoRecord means that a checkpoint store has no record of a name.
var ErrNoRecord = errors.New("no such checkpoint record")

// CheckpointStore keeps checkpoint records outside the log's own authority: whoever
// may write to the log must not be able to change or remove a record, or else the
// log can be rewritten together with what would tell. An object store with another
// credential will do, best with versions or a retention lock. Names are those of
// proof.Record.Name. Safe for concurrent use.
type CheckpointStore interface {
	// Put stores a record and returns when it is durable. A name is only ever put
	// again with the same bytes.
	Put(ctx context.Context, name string, record []byte) error
	// Get returns a record, or an error that wraps ErrNoRecord.
	Get(ctx context.Context, name string) ([]byte, error)
	// Names returns the names of all records, in any order; others are passed over.
	Names(ctx context.Context) ([]string, error)
}

// recordName is the form of names that proof.Record.Name gives.
var recordName = regexp.MustCompile(`^[0-9]{20}-[0-9a-f]{16}\.json$`)

// ValidRecordName reports whether a name is one of a checkpoint record, for
// implementations of CheckpointStore that hold other things too.
func ValidRecordName(name string) bool { return recordName.MatchString(name) }

// DirStore is a CheckpointStore in a directory, for one machine and for copies on
// media of its own. Files are written once, synced, and read-only.
type DirStore struct{ dir string }

var _ CheckpointStore = (*DirStore)(nil)

// NewDirStore uses a directory, which the first Put makes with mode 0700 if it is
// missing.
func NewDirStore(dir string) *DirStore { return &DirStore{dir: dir} }

// Put implements CheckpointStore.
func (s *DirStore) Put(_ context.Context, name string, record []byte) (err error) {
	if !ValidRecordName(name) {
		return fmt.Errorf("checkpoint directory: %q is not the name of a record", name)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("checkpoint directory: put %s: %w", name, err)
		}
	}()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, ".put-*")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, err = f.Write(record)
	if err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, replaces nothing.
	if err := os.Link(f.Name(), filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get implements CheckpointStore.
func (s *DirStore) Get(_ context.Context, name string) ([]byte, error) {
	if !ValidRecordName(name) {
		return nil, fmt.Errorf("checkpoint directory: %w: %q", ErrNoRecord, name)
	}
	path := filepath.Join(s.dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint directory: %w: %s", ErrNoRecord, name)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	if info.Size() > proof.MaxRecordBytes {
		return nil, fmt.Errorf("checkpoint directory: %s has %d bytes", name, info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	return b, nil
}

// Names implements CheckpointStore.
func (s *DirStore) Names(context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if ValidRecordName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// sortedNames returns the names of the records by size.
func sortedNames(ctx context.Context, s CheckpointStore) ([]string, error) {
	names, err := s.Names(ctx)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !ValidRecordName(n) })
	slices.Sort(names)
	return names, nil
}

// ofSize returns those of sorted names whose records are of that size.
func ofSize(names []string, size int64) []string {
	from, _ := slices.BinarySearch(names, fmt.Sprintf("%020d-", size))
	to, _ := slices.BinarySearch(names, fmt.Sprintf("%020d-", size+1))
	return names[from:to]
}

// openRecord reads a record.
func openRecord(ctx context.Context, s CheckpointStore, name string, keys *proof.Keys) (*proof.Record, error) {
	b, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	rec, err := proof.OpenRecord(b, keys)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", name, err)
	}
	if rec.Name() != name {
		return nil, fmt.Errorf("record %s: %w: it holds the checkpoint of another name, %s", name, proof.ErrMalformed, rec.Name())
	}
	return rec, nil
}

// Latest returns the newest checkpoint of a store; nil if it has none.
func Latest(ctx context.Context, s CheckpointStore, keys *proof.Keys) (*proof.Record, error) {
	names, err := sortedNames(ctx, s)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	return openRecord(ctx, s, names[len(names)-1], keys)
}
