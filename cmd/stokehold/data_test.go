package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
	"github.com/stokehold/stokehold/workflows"
)

// moved makes migrations where it is asked for them, without Temporal.
type moved struct {
	*tiers.Store
	models *models.Registry // nil: there is none
}

func (m moved) Migrate(ctx context.Context, w workflows.Migration) (string, error) {
	for seq := w.From; seq < w.To; seq++ {
		one := tiers.Migration{Dataset: w.Dataset, Sequence: seq, Evict: w.Evict, To: w.Tier, Reason: w.Reason}
		if _, err := m.Move(ctx, one, nil); err != nil {
			return "", err
		}
	}
	return "migrate/" + w.Dataset, nil
}

func (moved) Migrated(_ context.Context, _ string, _ func(string)) (workflows.MigrationResult, error) {
	return workflows.MigrationResult{Moved: 3}, nil
}

// The data commands on a real catalog, warm directory and objects.
func TestData(t *testing.T) {
	ctx := t.Context()
	srv := natstest.Start(t)
	nc := srv.Connect()
	bus, err := events.Open(ctx, events.Config{Conn: nc, Judge: events.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := bus.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	warm, cold := filepath.Join(t.TempDir(), "warm"), t.TempDir()
	objects, err := objectdir.Open(cold)
	if err != nil {
		t.Fatal(err)
	}
	open := func() *tiers.Store {
		s, err := tiers.Open(ctx, tiers.Config{Conn: nc, Bus: bus, Host: &shm.Host{}, Warm: warm, Cold: objects})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	schema := arrow.NewSchema([]arrow.Field{{Name: "id", Type: arrow.PrimitiveTypes.Int64}}, nil)
	w, err := s.Writer(ctx, "flights/labels", schema, tiers.Fence{Run: "r1", Stage: "ingest", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(3) {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		b.Field(0).(*array.Int64Builder).AppendValues([]int64{int64(seq), 7}, nil)
		rec := b.NewRecordBatch()
		if _, err := w.WriteAt(ctx, seq, rec); err != nil {
			t.Fatal(err)
		}
		rec.Release()
		b.Release()
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(nc.ConnectedUrl(), "nats://")
	stokehold := dataCommand(t, address, func() moved { return moved{Store: open()} })
	expect := func(want string, args ...string) {
		t.Helper()
		out, errs, code := stokehold(args...)
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("data %s: exit %d, want %q in:\n%s%s", strings.Join(args, " "), code, want, out, errs)
		}
	}
	expect("flights/labels", "ls")
	expect(`"next":3`, "ls", "-o", "json")
	expect("warm", "show", "flights/labels", "--from", "1")
	expect("3 copies of 3 batches read", "verify", "flights/labels")
	expect("3 batches in the cold tier", "move", "flights/labels", "--wait")
	expect("6 copies of 3 batches read", "verify", "flights/labels")
	expect("legal hold on batches 0 on: case 7", "pin", "flights/labels", "--hold", "--reason", "case 7")
	expect("legal hold", "show", "flights/labels")
	if _, errs, code := stokehold("move", "flights/labels", "--evict"); code != exitFailure || !strings.Contains(errs, "case 7") {
		t.Errorf("evicting what is held: exit %d, %s", code, errs)
	}
	expect("1 pin removed", "unpin", "flights/labels", "--hold")
	expect("cold", "move", "flights/labels", "--evict", "--wait")
	expect("batches in the warm tier", "move", "flights/labels", "--tier", "warm", "--wait")
	expect("0 copies", "gc")
	if err := tiers.ClaimObjects(ctx, objects, "another", true); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := stokehold("gc", "--delete"); code != exitFailure || !strings.Contains(errs, "data take-over") {
		t.Errorf("in another's cold tier: exit %d, %s", code, errs)
	}
	expect("this system's", "take-over")
	expect("0 copies", "gc")

	var damaged string
	err = filepath.WalkDir(warm, func(path string, d os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".arrow") {
			damaged = path
		}
		return err
	})
	if err != nil || damaged == "" {
		t.Fatalf("no warm file: %v", err)
	}
	if err := os.Truncate(damaged, 10); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := stokehold("verify", "flights/labels"); code != exitFailure || !strings.Contains(out, "damaged  batch 2  warm") || !strings.Contains(errs, "1 copies are damaged") {
		t.Errorf("verify: exit %d, %s%s", code, out, errs)
	}
	expect("1 damaged, 1 of them healed", "verify", "flights/labels", "--repair")
	expect("0 damaged", "verify", "flights/labels")

	dir := t.TempDir()
	for _, name := range []string{"x.parquet", "x.arrow"} {
		expect("3 batches, 6 rows", "export", "flights/labels", filepath.Join(dir, name))
	}
	checkExports(t, dir)
	for _, args := range [][]string{
		{"export", "flights/labels", "x.csv"}, {"move", "flights/labels", "--tier", "hot"}, {"move", "flights/labels", "--tier", "warm", "--evict"}, {"show"}, {"gc", "--grace", "-1s"},
	} {
		if _, errs, code := stokehold(args...); code != exitUsage {
			t.Errorf("data %v: exit %d, %s", args, code, errs)
		}
	}
	if _, errs, code := stokehold("show", "nosuch"); code != exitFailure || !strings.Contains(errs, "no dataset \"nosuch\"") {
		t.Errorf("show nosuch: exit %d, %s", code, errs)
	}
	out, _, _ := stokehold("show", "flights/labels", "-o", "json")
	var info tiers.BatchInfo
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &info); err != nil || info.Ref.Dataset != "flights/labels" {
		t.Errorf("%+v, %v", info, err)
	}
}

// checkExports reads the files back with other readers than those that wrote them.
func checkExports(t *testing.T, dir string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "x.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := parquet.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	rows := int64(0)
	for rec, err := range p.Batches() {
		if err != nil {
			t.Fatal(err)
		}
		rows += rec.NumRows()
	}
	f, err := os.Open(filepath.Join(dir, "x.arrow"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewFileReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if rows != 6 || r.NumRecords() != 3 {
		t.Errorf("%d rows of Parquet, %d batches of Arrow", rows, r.NumRecords())
	}
	if err := errors.Join(r.Close(), f.Close()); err != nil {
		t.Error(err)
	}
}

// dataCommand runs `stokehold data` against the servers at address and a store.
func dataCommand(t *testing.T, address string, open func() moved) func(args ...string) (out, errs string, code int) {
	t.Helper()
	return command(t, "data", address, open)
}

// command runs a command that needs the data plane.
func command(t *testing.T, name, address string, open func() moved) func(args ...string) (out, errs string, code int) {
	t.Helper()
	return func(args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		env := &environment{Out: &out, Err: &errs, Now: time.Now, Environ: []string{
			"NATS_URL=nats://" + address, "TEMPORAL_ADDRESS=" + address, "STOKEHOLD_STATE=" + t.TempDir(),
		}}
		code := run(append([]string{name}, args...), env, platform{
			Discover: func(string) (config.Found, bool, error) { return config.Found{}, false, nil },
			Data:     func(context.Context, config.Config) (dataSystem, error) { return open(), nil },
		})
		return out.String(), errs.String(), code
	}
}
