package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	pqfile "github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/internal/benchtable"
)

//go:embed parquet.py
var peer string

// sample is one measurement of one case.
type sample struct {
	wall   float64 // seconds
	cpu    float64 // seconds of processor time
	allocs float64
}

// parquetGroup measures our writer and reader against pqarrow and pyarrow, on one
// processor and on two: each batch is a row group, at zstd's fastest level, with
// statistics, to and from memory.
func parquetGroup(s settings) (rows []benchtable.Row, err error) {
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	py, err := startPyarrow(s.python, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, py.stop()) }()
	if s.cpuprofile != "" {
		f, err := os.Create(s.cpuprofile)
		if err != nil {
			return nil, err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	for name, batch := range map[string]arrow.RecordBatch{"events": eventRows(400_000), "embeddings": embeddings(100_000)} {
		more, err := compare(s, py, dir, name, batch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, more...)
	}
	slices.SortFunc(rows, func(a, b benchtable.Row) int { return strings.Compare(a.Case, b.Case) })
	return rows, nil
}

func compare(s settings, py *pyarrow, dir, name string, batch arrow.RecordBatch) ([]benchtable.Row, error) {
	size, _ := arrowio.BodyBytes(batch)
	if err := writeIPC(filepath.Join(dir, name+".arrow"), batch); err != nil {
		return nil, err
	}
	if _, err := py.ask(request{Do: "load", Name: name}); err != nil {
		return nil, err
	}
	var ours, theirs bytes.Buffer
	if err := parquet.Write(&ours, batch); err != nil {
		return nil, err
	}
	if err := pqarrowWrite(&theirs, batch); err != nil {
		return nil, err
	}
	// pyarrow's own file, which all read, too.
	shared := filepath.Join(dir, name+".parquet")
	made, err := py.ask(request{Do: "file", Name: name, Path: shared})
	if err != nil {
		return nil, err
	}
	foreign, err := os.ReadFile(shared)
	if err != nil {
		return nil, err
	}
	rows := []benchtable.Row{
		sizeRow("parquet "+name+": file size vs pqarrow", float64(ours.Len()), float64(theirs.Len())),
		sizeRow("parquet "+name+": file size vs pyarrow", float64(ours.Len()), float64(made.Bytes)),
	}
	for _, procs := range []int{1, 2} {
		samples := map[string][]sample{}
		cases := []struct {
			name string
			run  func() error
		}{
			{"ours write", func() error { return parquet.Write(discard(ours.Len()), batch) }},
			{"pqarrow write", func() error { return pqarrowWrite(discard(theirs.Len()), batch) }},
			{"ours read", func() error { return oursRead(ours.Bytes()) }},
			{"pqarrow read", func() error { return pqarrowRead(theirs.Bytes(), procs > 1) }},
			{"ours read pyarrow's", func() error { return oursRead(foreign) }},
			{"pqarrow read pyarrow's", func() error { return pqarrowRead(foreign, procs > 1) }},
		}
		before := runtime.GOMAXPROCS(procs)
		for round := range s.rounds + 1 { // the first warms up
			for _, c := range cases {
				if !s.wants(fmt.Sprint(name, " ", c.name)) {
					continue
				}
				one, err := measure(c.run)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.name, err)
				}
				if round > 0 {
					samples[c.name] = append(samples[c.name], one)
				}
			}
			for _, do := range []string{"write", "read"} {
				answer, err := py.ask(request{Do: do, Name: name, Threads: procs > 1})
				if err != nil {
					return nil, err
				}
				if round > 0 {
					samples["pyarrow "+do] = append(samples["pyarrow "+do], sample{wall: answer.Wall, cpu: answer.CPU})
				}
			}
		}
		runtime.GOMAXPROCS(before)
		rows = append(rows, report(name, procs, float64(size), samples)...)
	}
	return rows, nil
}

// report turns samples into rows, in MB of Arrow data.
func report(name string, procs int, size float64, samples map[string][]sample) (rows []benchtable.Row) {
	for _, pair := range [][3]string{
		{"write vs pqarrow", "ours write", "pqarrow write"}, {"write vs pyarrow", "ours write", "pyarrow write"},
		{"read vs pqarrow", "ours read", "pqarrow read"}, {"read vs pyarrow", "ours read", "pyarrow read"},
		{"read pyarrow's file vs pqarrow", "ours read pyarrow's", "pqarrow read pyarrow's"}, {"read pyarrow's file vs pyarrow", "ours read pyarrow's", "pyarrow read"},
	} {
		a, b := samples[pair[1]], samples[pair[2]]
		if a == nil || b == nil {
			continue
		}
		label := fmt.Sprintf("parquet %s, %d cores: %s", name, procs, pair[0])
		rows = append(rows, rateRow(label, "MB/s", size, a, b, func(s sample) float64 { return s.wall }),
			rateRow(label+", per CPU second", "MB/CPU-s", size, a, b, func(s sample) float64 { return s.cpu }))
		if pair[2] == "pqarrow write" {
			x, y := median(a, func(s sample) float64 { return s.allocs }), median(b, func(s sample) float64 { return s.allocs })
			rows = append(rows, benchtable.Row{Case: label + ", allocations", Unit: "allocations", Value: x, Baseline: y, Ratio: y / x})
		}
	}
	return rows
}

func rateRow(label, unit string, size float64, a, b []sample, of func(sample) float64) benchtable.Row {
	x, y := size/1e6/median(a, of), size/1e6/median(b, of)
	return benchtable.Row{Case: label, Unit: unit, Value: x, Baseline: y, Ratio: x / y}
}

func sizeRow(label string, a, b float64) benchtable.Row {
	return benchtable.Row{Case: label, Unit: "bytes", Value: a, Baseline: b, Ratio: b / a}
}

func median(samples []sample, of func(sample) float64) float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func measure(run func() error) (sample, error) {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, begun := processorTime(), time.Now()
	err := run()
	s := sample{wall: time.Since(begun).Seconds(), cpu: processorTime() - cpu}
	runtime.ReadMemStats(&after)
	s.allocs = float64(after.Mallocs - before.Mallocs)
	return s, err
}

func processorTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// discard is a buffer as large as the file, so that growing it is not measured.
func discard(size int) io.Writer { return bytes.NewBuffer(make([]byte, 0, size+1<<20)) }

func oursRead(raw []byte) error {
	recs, err := parquet.Read(bytes.NewReader(raw), int64(len(raw)))
	for _, r := range recs {
		r.Release()
	}
	return err
}

func pqarrowWrite(out io.Writer, batch arrow.RecordBatch) error {
	props := pqfile.NewWriterProperties(pqfile.WithCompression(compress.Codecs.Zstd), pqfile.WithCompressionLevel(1), pqfile.WithMaxRowGroupLength(1<<30))
	w, err := pqarrow.NewFileWriter(batch.Schema(), out, props, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return err
	}
	if err := w.Write(batch); err != nil {
		return err
	}
	return w.Close()
}

func pqarrowRead(raw []byte, parallel bool) error {
	f, err := file.NewParquetReader(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{Parallel: parallel}, memory.NewGoAllocator())
	if err != nil {
		return err
	}
	t, err := r.ReadTable(context.Background())
	if err != nil {
		return err
	}
	t.Release()
	return nil
}

func writeIPC(path string, batch arrow.RecordBatch) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := ipc.NewFileWriter(f, ipc.WithSchema(batch.Schema()))
	if err != nil {
		return err
	}
	if err := w.Write(batch); err != nil {
		return err
	}
	return w.Close()
}

// pyarrow is a Python process that measures itself.
type pyarrow struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

type request struct {
	Do      string `json:"do"`
	Name    string `json:"name"`
	Path    string `json:"path,omitempty"`
	Threads bool   `json:"threads"`
}

type answer struct {
	Wall  float64 `json:"wall"`
	CPU   float64 `json:"cpu"`
	Bytes int64   `json:"bytes"`
}

func startPyarrow(python, dir string) (*pyarrow, error) {
	cmd := exec.CommandContext(context.Background(), python, "-c", peer, dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: make a Python with pyarrow by `task python:venv`, or name one with -python", err)
	}
	return &pyarrow{cmd: cmd, in: in, out: bufio.NewReader(out)}, nil
}

func (p *pyarrow) ask(r request) (a answer, err error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	if _, err := p.in.Write(append(raw, '\n')); err != nil {
		return a, err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("pyarrow: %w", err)
	}
	return a, json.Unmarshal(line, &a)
}

func (p *pyarrow) stop() error {
	return errors.Join(p.in.Close(), p.cmd.Wait())
}
