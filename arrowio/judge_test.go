package arrowio_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/internal/pythontest"
	"github.com/stokehold/stokehold/internal/talk"
)

const judgeBytes = 4 << 20 // of the file that the judge has mapped

// judge is a Python process with pyarrow, for one test and what it runs.
type judge struct {
	in   io.Writer
	out  *bufio.Reader
	file *os.File
}

type verdict struct {
	Schema    string `json:"schema"`
	Valid     bool   `json:"valid"`
	Outside   int64  `json:"outside"`
	Values    string `json:"values"`
	Error     string `json:"error"`
	Traceback string `json:"traceback"`
}

func startJudge(t *testing.T) *judge {
	t.Helper()
	python := pythontest.Interpreter(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "frame"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(judgeBytes); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "testdata/judge.py", file.Name())
	in, out := talk.Start(t, cmd)
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("judge:", err)
		}
	})
	j := &judge{in: in, out: bufio.NewReader(out), file: file}
	version, err := j.read()
	if err != nil {
		t.Fatal("judge does not start:", err)
	}
	t.Logf("pyarrow %s", version)
	return j
}

func (j *judge) read() ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(j.out, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.LittleEndian.Uint32(n[:]))
	_, err := io.ReadFull(j.out, b)
	return b, err
}

// ask returns what pyarrow says of a frame and the frame as it writes it. values
// are compared unless nil.
func (j *judge) ask(t fataler, frame, values []byte) (verdict, []byte) {
	t.Helper()
	if len(frame) > judgeBytes {
		t.Fatalf("frame of %d bytes", len(frame))
	}
	if _, err := j.file.WriteAt(frame, 0); err != nil {
		t.Fatalf("%v", err)
	}
	request := map[string]any{"length": len(frame), "values": nil}
	if values != nil {
		request["values"] = string(values)
	}
	return j.request(t, request)
}

func (j *judge) request(t fataler, request map[string]any) (verdict, []byte) {
	t.Helper()
	b, err := json.Marshal(request)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if _, err := j.in.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
		t.Fatalf("%v", err)
	}
	var v verdict
	answer, err := j.read()
	if err != nil {
		t.Fatalf("judge is gone: %v", err)
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	out, err := j.read()
	if err != nil {
		t.Fatalf("judge is gone: %v", err)
	}
	return v, out
}

// noClass are the types for which pyarrow has no class: it reads, validates and
// writes batches of them, but gives no array.
func noClass() []arrow.DataType {
	return []arrow.DataType{arrow.FixedWidthTypes.MonthInterval, arrow.FixedWidthTypes.DayTimeInterval}
}

func pyarrowHasNoClass(s *arrow.Schema) bool {
	for _, f := range s.Fields() {
		for _, dt := range noClass() {
			if strings.Contains(f.Type.String(), dt.String()) {
				return true
			}
		}
	}
	return false
}

// thereAndBack sends rec to pyarrow and back: same values there, nothing copied, and
// what pyarrow writes is, framed again, what was sent.
func (j *judge) thereAndBack(t fataler, rec arrow.RecordBatch) {
	t.Helper()
	frame := roundTrip(t, rec)
	v, out := j.ask(t, frame, values(t, rec))
	if v.Valid && len(out) > 0 && pyarrowHasNoClass(rec.Schema()) {
		v.Error = ""
	}
	if v.Error != "" {
		t.Fatalf("%s of %d rows\nvalues %s\npyarrow: %s\n%s", rec.Schema(), rec.NumRows(), values(t, rec), v.Error, v.Traceback)
	}
	if v.Outside != 0 {
		t.Fatalf("%s: pyarrow copied %d bytes", rec.Schema(), v.Outside)
	}
	back, err := arrowio.Decode(out, nil)
	if err != nil {
		t.Fatalf("%s: what pyarrow wrote: %v", rec.Schema(), err)
	}
	defer back.Release()
	again, err := arrowio.Encode(back, nil)
	if err != nil {
		t.Fatalf("%s: framing what pyarrow wrote: %v", rec.Schema(), err)
	}
	if !bytes.Equal(frame, again) {
		t.Fatalf("%s of %d rows\ncame back as %s: %d bytes, not %d", rec.Schema(), rec.NumRows(), back.Schema(), len(again), len(frame))
	}
}

// TestPyarrow lets pyarrow judge what this package writes and reads. One process
// does for all.
func TestPyarrow(t *testing.T) {
	j := startJudge(t)
	t.Run("every type", func(t *testing.T) {
		g := arrowtest.NewFiller(rand.New(rand.NewPCG(3, 4)))
		for i, f := range everyType() {
			t.Run(fmt.Sprint(i, " ", f.Name), func(t *testing.T) {
				for _, rows := range []int{0, 21} {
					rec := g.Batch(arrow.NewSchema([]arrow.Field{f}, nil), rows)
					defer rec.Release()
					j.thereAndBack(t, rec)
				}
			})
		}
	})
	// These are all that pyarrow has no class for; every other type is compared above.
	for _, dt := range noClass() {
		t.Run("no class for "+dt.String(), func(t *testing.T) {
			rec := arrowtest.NewFiller(rand.New(rand.NewPCG(5, 6))).Batch(arrow.NewSchema([]arrow.Field{{Name: "x", Type: dt, Nullable: true}}, nil), 3)
			defer rec.Release()
			if v, _ := j.ask(t, encode(t, rec), values(t, rec)); !v.Valid || !strings.HasPrefix(v.Error, "KeyError") {
				t.Errorf("pyarrow has one now? valid %v, error %q: then take the type off the list", v.Valid, v.Error)
			}
		})
	}
	t.Run("hostile frames", func(t *testing.T) {
		for _, h := range hostiles(t) {
			if h.pyarrow == crashes || h.pyarrow == untold {
				continue // it would end the judge, or it has no say
			}
			t.Run(h.name, func(t *testing.T) {
				v, _ := j.ask(t, h.frame, nil)
				if v.Valid != (h.pyarrow == accepts) {
					t.Errorf("pyarrow finds it valid: %v, error %s", v.Valid, v.Error)
				}
			})
		}
	})
	t.Run("damaged frames", func(t *testing.T) { testDamaged(t, j) })
	t.Run("streams that pyarrow writes", func(t *testing.T) { testForeign(t, j) })
	t.Run("random batches", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			rec := drawBatch(t)
			defer rec.Release()
			j.thereAndBack(t, rec)
		})
	})
}

// testForeign decodes what another implementation writes: it aligns to 8 bytes,
// and offers no other alignment in Python.
func testForeign(t *testing.T, j *judge) {
	const corrupt, unsupported = "corrupt", "unsupported"
	for name, want := range map[string]string{
		"default": "", "sliced": "", "no rows": "", "no columns": "",
		"lz4": unsupported, "zstd": unsupported, "metadata V4": unsupported, "before 0.15": corrupt,
		"dictionary delta": unsupported, "dictionary replacement": corrupt, "two batches": corrupt, // have two batches
		"empty list of size 0": corrupt, // the library has no such type
	} {
		t.Run(name, func(t *testing.T) {
			v, stream := j.request(t, map[string]any{"make": name})
			if v.Error != "" {
				t.Fatal(v.Traceback)
			}
			frame := onItsOwn(stream)
			rec, err := arrowio.Decode(frame, nil)
			if errors.Is(err, arrowio.ErrCorrupt) != (want != "") || errors.Is(err, arrowio.ErrUnsupported) != (want == unsupported) {
				t.Fatal(err)
			}
			if err != nil {
				t.Log(err)
				return
			}
			defer rec.Release()
			if have := values(t, rec); string(have) != v.Values {
				t.Errorf("have %s\nwant %s", have, v.Values)
			}
			if n := arrowio.BytesOutside(rec, frame); n != 0 {
				t.Errorf("%d bytes copied", n)
			}
			j.thereAndBack(t, rec)
		})
	}
}

// testDamaged holds that what Decode accepts of frames in which something was
// changed at random, pyarrow finds valid.
func testDamaged(t *testing.T, j *judge) {
	r := rand.New(rand.NewPCG(11, 12))
	g := arrowtest.NewFiller(r)
	accepted, refused := 0, 0
	for _, f := range everyType()[:300] {
		rec := g.Batch(arrow.NewSchema([]arrow.Field{f}, nil), 5)
		good := encode(t, rec)
		rec.Release()
		for range 10 {
			frame := onItsOwn(good)
			body := last(frame)
			where := [][]byte{body.Body, body.Body, body.Meta}[r.IntN(3)]
			if len(where) == 0 {
				where = body.Meta
			}
			at := r.IntN(len(where))
			where[at] = []byte{where[at] ^ 1, where[at] + 1, 0xff, 0, 0x80}[r.IntN(5)]
			got, err := arrowio.Decode(frame, nil)
			if err != nil {
				refused++
				continue
			}
			got.Release()
			accepted++
			if v, _ := j.ask(t, frame, nil); !v.Valid {
				t.Errorf("%s, byte %d of %d: pyarrow: %s", f.Name, at, len(where), v.Error)
			}
		}
	}
	if accepted < 100 || refused < 100 {
		t.Errorf("%d accepted and %d refused: that says little", accepted, refused)
	}
	t.Logf("%d accepted, %d refused", accepted, refused)
}
