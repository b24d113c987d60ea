package tierstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/tiers"
)

// Subject is a driver to be tested.
type Subject struct {
	tiers.Driver
	Tier arrowio.Tier
	// Damage changes bytes of a copy where they are kept; nil: nobody can.
	Damage func(t *testing.T, loc arrowio.Location)
}

// RunDriver proves that a driver keeps the contract of tiers.Driver: that of the hot,
// the warm and the cold tier alike. open returns a driver with room for 8 MiB that
// holds no batch of a dataset whose name begins with "tierstest"; it is called once
// for each subtest.
func RunDriver(t *testing.T, open func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(context.Context, *testing.T, Subject)
	}{
		{"every type", everyType},
		{"writing again is a success", writeAgain},
		{"batches stay apart", apart},
		{"absent copies", absentCopies},
		{"removal", removal},
		{"damaged copies", damagedCopies},
		{"locations that lie", lyingLocations},
		{"names of datasets", datasetNames},
		{"ended contexts", endedContexts},
		{"at once", driverAtOnce},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
			defer cancel()
			c.run(ctx, t, open(t))
		})
	}
}

// numbered makes a batch whose values depend on its number alone.
func numbered(n uint64, rows int) arrow.RecordBatch {
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(1, n))) //nolint:gosec // not a secret
	return g.Batch(arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "vector", Type: arrow.FixedSizeListOf(4, arrow.PrimitiveTypes.Float32)},
	}, nil), rows)
}

func refOf(t *testing.T, dataset string, seq uint64, rec arrow.RecordBatch) arrowio.Ref {
	t.Helper()
	body, err := arrowio.BodyBytes(rec)
	if err != nil {
		t.Fatal(err)
	}
	return arrowio.Ref{Dataset: dataset, Sequence: seq, Rows: rec.NumRows(), BodyBytes: body, Fingerprint: arrowio.Fingerprint(rec.Schema())}
}

func text(t *testing.T, rec arrow.RecordBatch) []byte {
	t.Helper()
	b, err := json.Marshal(arrowtest.PlainBatch(rec))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write writes a batch and checks what the location says.
func (s Subject) write(ctx context.Context, t *testing.T, ref arrowio.Ref, rec arrow.RecordBatch) arrowio.Location {
	t.Helper()
	loc, err := s.Write(ctx, ref, rec)
	if err != nil {
		t.Fatalf("write %s: %v", ref.ID(), err)
	}
	if loc.Tier != s.Tier || loc.URI == "" || loc.Bytes <= 0 || loc.Codec == "" || s.Tier != arrowio.Hot && len(loc.SHA256) != 64 {
		t.Errorf("%s is at %+v", ref.ID(), loc)
	}
	return loc
}

// holds fails unless the copy at loc has the values of rec.
func (s Subject) holds(ctx context.Context, t *testing.T, ref arrowio.Ref, loc arrowio.Location, rec arrow.RecordBatch) {
	t.Helper()
	got, err := s.Read(ctx, ref, loc)
	if err != nil {
		t.Errorf("read %s: %v", ref.ID(), err)
		return
	}
	defer got.Release()
	if arrowio.Fingerprint(got.Schema()) != arrowio.Fingerprint(rec.Schema()) || !bytes.Equal(text(t, got), text(t, rec)) {
		t.Errorf("%s: %s\nbecame %s", ref.ID(), rec.Schema(), got.Schema())
	}
}

// is fails unless reading gives an error of that kind.
func (s Subject) is(ctx context.Context, t *testing.T, what string, ref arrowio.Ref, loc arrowio.Location, kinds ...error) {
	t.Helper()
	got, err := s.Read(ctx, ref, loc)
	if err == nil {
		got.Release()
		t.Errorf("%s: no error", what)
		return
	}
	for _, k := range kinds {
		if errors.Is(err, k) {
			return
		}
	}
	t.Errorf("%s: %v, want one of %v", what, err, kinds)
}

func everyType(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	types := append(arrowtest.Leaves(), arrowtest.Canonical()...)
	for _, dt := range []arrow.DataType{arrow.PrimitiveTypes.Float32, arrow.BinaryTypes.String, arrow.BinaryTypes.BinaryView} {
		types = append(types, arrowtest.Nests(dt)...)
	}
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(3, 4))) //nolint:gosec // not a secret
	const columns = 4
	for at := 0; at < len(types); at += columns {
		var fields []arrow.Field
		for i, dt := range types[at:min(at+columns, len(types))] {
			fields = append(fields, arrow.Field{Name: strconv.Itoa(i), Type: dt, Nullable: true})
		}
		for k, rows := range []int{0, 30} {
			rec := g.Batch(arrow.NewSchema(fields, nil), rows)
			ref := refOf(t, "tierstest-types", uint64(2*at+k), rec) //nolint:gosec // small
			loc := s.write(ctx, t, ref, rec)
			s.holds(ctx, t, ref, loc, rec)
			rec.Release()
			if err := s.Remove(ctx, ref, loc); err != nil {
				t.Error(err)
			}
		}
	}
}

func writeAgain(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 100)
	defer rec.Release()
	ref := refOf(t, "tierstest", 1, rec)
	first := s.write(ctx, t, ref, rec)
	if again := s.write(ctx, t, ref, rec); again != first {
		t.Errorf("first %+v\nthen %+v", first, again)
	}
	s.holds(ctx, t, ref, first, rec)
}

func apart(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	const n = 5
	refs, locs := map[uint64]arrowio.Ref{}, map[uint64]arrowio.Location{}
	for i := range uint64(n) {
		rec := numbered(i, 100)
		refs[i] = refOf(t, fmt.Sprintf("tierstest-%d", i%2), i, rec)
		locs[i] = s.write(ctx, t, refs[i], rec)
		rec.Release()
	}
	for i := range uint64(n) {
		rec := numbered(i, 100)
		s.holds(ctx, t, refs[i], locs[i], rec)
		rec.Release()
	}
}

func absentCopies(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 100)
	defer rec.Release()
	ref := refOf(t, "tierstest", 1, rec)
	loc := s.write(ctx, t, ref, rec)
	other := loc
	if loc.SHA256 != "" {
		other.SHA256 = strings.Repeat("0", 64)
	} else {
		other.URI = strings.Replace(loc.URI, "shm:", "shm:0", 1)
	}
	s.is(ctx, t, "a copy of another name", ref, other, arrowio.ErrGone)
	if err := s.Remove(ctx, refOf(t, "tierstest", 2, rec), other); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	s.holds(ctx, t, ref, loc, rec)
}

func removal(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 5000)
	defer rec.Release()
	ref := refOf(t, "tierstest", 1, rec)
	loc := s.write(ctx, t, ref, rec)
	open, err := s.Read(ctx, ref, loc)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove(ctx, ref, loc); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(text(t, open), text(t, rec)) {
		t.Error("what was open changed")
	}
	open.Release() // a tier may give others what is still open
	s.is(ctx, t, "a copy that was removed", ref, loc, arrowio.ErrGone)
	// It may come back.
	s.holds(ctx, t, ref, s.write(ctx, t, ref, rec), rec)
}

func damagedCopies(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	if s.Damage == nil {
		t.Skip("nobody can damage a copy of this tier")
	}
	rec := numbered(1, 1000)
	defer rec.Release()
	ref := refOf(t, "tierstest", 1, rec)
	loc := s.write(ctx, t, ref, rec)
	s.Damage(t, loc)
	s.is(ctx, t, "a damaged copy", ref, loc, arrowio.ErrCorrupt)
	// Writing it again repairs it.
	s.holds(ctx, t, ref, s.write(ctx, t, ref, rec), rec)
}

func lyingLocations(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 1000)
	defer rec.Release()
	ref := refOf(t, "tierstest", 1, rec)
	loc := s.write(ctx, t, ref, rec)
	other := numbered(2, 1000)
	defer other.Release()
	otherLoc := s.write(ctx, t, refOf(t, "tierstest", 2, other), other)
	kinds := []error{arrowio.ErrCorrupt, arrowio.ErrGone, arrowio.ErrUnsupported, tiers.ErrName}
	lies := map[string]func(*arrowio.Location){
		"no URI":            func(l *arrowio.Location) { l.URI = "" },
		"a URI of nothing":  func(l *arrowio.Location) { l.URI = "x:%zz" },
		"a hash of letters": func(l *arrowio.Location) { l.SHA256 = strings.Repeat("z", 64) },
		"a path for a hash": func(l *arrowio.Location) { l.SHA256 = "../../../../etc/passwd" },
		"another's hash":    func(l *arrowio.Location) { l.SHA256 = otherLoc.SHA256 },
		"a byte more":       func(l *arrowio.Location) { l.Bytes++ },
		"a byte less":       func(l *arrowio.Location) { l.Bytes-- },
		"very many bytes":   func(l *arrowio.Location) { l.Bytes = 1 << 62 },
		"bytes below none":  func(l *arrowio.Location) { l.Bytes = -1 },
		"another codec":     func(l *arrowio.Location) { l.Codec = "orc" },
	}
	for name, lie := range lies {
		l := loc
		lie(&l)
		got, err := s.Read(ctx, ref, l)
		if err == nil { // told by what the lie is not about
			if !bytes.Equal(text(t, got), text(t, rec)) {
				t.Errorf("%s: another batch", name)
			}
			got.Release()
			continue
		}
		if !slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) }) {
			t.Errorf("%s: %v is no error of the contract", name, err)
		}
	}
	s.holds(ctx, t, ref, loc, rec)
}

func datasetNames(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 10)
	defer rec.Release()
	for i, name := range []string{"tierstest/a/b", "tierstest.a", "tierstest a", "tierstest-ü", "../tierstest", "..", "", "tierstest\x00", strings.Repeat("tierstest", 100)} {
		ref := refOf(t, name, uint64(i), rec) //nolint:gosec // small
		loc, err := s.Write(ctx, ref, rec)
		if err != nil {
			if !errors.Is(err, tiers.ErrName) {
				t.Errorf("%q: %v, want ErrName or none", name, err)
			}
			continue
		}
		s.holds(ctx, t, ref, loc, rec)
		if err := s.Remove(ctx, ref, loc); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func endedContexts(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	rec := numbered(1, 100)
	defer rec.Release()
	ref, other := refOf(t, "tierstest", 1, rec), refOf(t, "tierstest", 2, rec)
	loc := s.write(ctx, t, ref, rec)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Write(ended, other, rec); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	s.is(ended, t, "read", ref, loc, context.Canceled)
	s.holds(ctx, t, ref, loc, rec)
}

func driverAtOnce(ctx context.Context, t *testing.T, s Subject) {
	t.Helper()
	const batches, each = 4, 3
	var g errgroup.Group
	for i := range batches * each {
		n := uint64(i % batches) //nolint:gosec // small
		g.Go(func() error {
			rec := numbered(n, 500)
			defer rec.Release()
			body, err := arrowio.BodyBytes(rec)
			if err != nil {
				return err
			}
			ref := arrowio.Ref{Dataset: "tierstest", Sequence: n, Rows: rec.NumRows(), BodyBytes: body, Fingerprint: arrowio.Fingerprint(rec.Schema())}
			loc, err := s.Write(ctx, ref, rec)
			if err != nil {
				return err
			}
			got, err := s.Read(ctx, ref, loc)
			if err != nil {
				return err
			}
			defer got.Release()
			a, err := json.Marshal(arrowtest.PlainBatch(got))
			if err != nil {
				return err
			}
			b, err := json.Marshal(arrowtest.PlainBatch(rec))
			if err == nil && !bytes.Equal(a, b) {
				err = fmt.Errorf("batch %d is another", n)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
