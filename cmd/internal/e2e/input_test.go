package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The gate compares models on 500 rows at least.
const fileWeeks, weekRows = 9, 672

// flightsFile writes a CSV of nine weeks of made-up flights, each line changed by
// change (number from 1; 0 is the head).
func flightsFile(t testing.TB, path string, change func(n int, line string) string) string {
	t.Helper()
	var b strings.Builder
	write := func(n int, line string) {
		if change != nil {
			line = change(n, line)
		}
		b.WriteString(line + "\n")
	}
	write(0, "date,delay,distance,origin,destination")
	begin := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	for n := range fileWeeks * weekRows {
		at := begin.Add(time.Duration(n) * 7 * 24 * time.Hour / weekRows)
		delay := (n*37)%61 - 30 // late a quarter of the time, and half of it in the evening
		if at.Hour() >= 18 {
			delay += 16
		}
		write(n+1, fmt.Sprintf("%s,%d,%d,SFO,LAX", at.Format("2006-01-02T15:04:05"), delay, 300+n%24))
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is wrong with a data file is said in one line, before anything of it is
// stored: the same state directory then takes a good one.
func TestBadData(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	file := func(name string) string { return filepath.Join(dir, name) }
	whole, err := os.ReadFile("../../../examples/flights/data/flights-2001.parquet")
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, content []byte) {
		if err := os.WriteFile(file(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(_ int, line string) string { return line[:strings.LastIndexByte(line, ',')] }
	at := func(want int, text string) func(int, string) string {
		return func(n int, line string) string {
			if n == want {
				return text
			}
			return line
		}
	}
	flightsFile(t, file("lacks.csv"), cut)
	flightsFile(t, file("type.csv"), at(50, "2001-01-03T00:00:00,late,300,SFO,LAX"))
	flightsFile(t, file("null.csv"), at(50, "2001-01-03T00:00:00,,300,SFO,LAX"))
	flightsFile(t, file("date.csv"), at(1, "yesterday,4,300,SFO,LAX"))
	flightsFile(t, file("ragged.csv"), at(50, "2001-01-03T00:00:00,4"))
	flightsFile(t, file("gap.csv"), at(1, "1999-01-01T00:00:00,4,300,SFO,LAX"))
	put("other.csv", []byte("a,b\n1,2\n"))
	put("head.csv", []byte("date,delay,distance,origin,destination\n"))
	put("short.csv", []byte("date,delay,distance,origin,destination\n2001-01-01T00:00:00,4,300,SFO,LAX\n"))
	put("cut.parquet", whole[:len(whole)/3])
	put("tail.parquet", append([]byte("PAR1"), whole[len(whole)/2:]...))
	put("empty.csv", nil)
	put("empty.parquet", nil)
	put("binary.csv", whole[4:])
	for _, c := range []struct{ name, words string }{
		{"lacks.csv", `lacks.csv "destination" missing`},
		{"type.csv", `type.csv row 50 "delay" "late" int64`},
		{"null.csv", `null.csv row 50 "delay"`},
		{"date.csv", `date.csv row 1 "date" "yesterday"`},
		{"ragged.csv", `ragged.csv line 51`},
		{"gap.csv", `gap.csv gap`},
		{"other.csv", `other.csv "date" "delay" "distance" missing`},
		{"head.csv", `head.csv no rows`},
		{"short.csv", `short.csv 8 are needed`},
		{"cut.parquet", `cut.parquet cut off`},
		{"tail.parquet", `tail.parquet`},
		{"empty.csv", `empty.csv empty`},
		{"empty.parquet", `empty.parquet empty`},
		{"binary.csv", `binary.csv`},
		{"none.csv", `none.csv no such file`},
		{".", `not a regular file`},
	} {
		failing(t, 1, c.words, demo(state, "", "--data", file(c.name))...)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("a data file that is refused left a state directory: %v", err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	good := flightsFile(t, file("good.csv"), nil)
	p := spawn(t, demo(state, report, "--data", good, "--weeks", "1")...)
	if code := p.wait(patience); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.errors())
	}
	if r := readReport(t, report); len(r.Weeks) != 1 || r.Data.Rows != fileWeeks*weekRows || r.Weeks[0].Rows != weekRows {
		t.Errorf("%+v, %d rows", r.Weeks, r.Data.Rows)
	}
	// The same state with other data would mix two histories.
	failing(t, 1, "good.csv other data", demo(state, "")...)
	failing(t, 1, "--seed 1 2", demo(state, "", "--data", good, "--seed", "2")...)
}

func TestBadPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, taken, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	_ = closed.Close()

	failing(t, 1, plain, demo(plain, "")...)
	failing(t, 1, plain, demo(filepath.Join(plain, "below"), "")...)
	failing(t, 1, "/proc/stokehold", demo("/proc/stokehold", "")...)
	failing(t, 1, "/proc/stokehold", "dev", "--free-ports", "--state", "/proc/stokehold")
	failing(t, 1, "report", demo("", filepath.Join(dir, "none", "report.json"))...)
	failing(t, 1, "directory", demo("", dir)...)
	failing(t, 1, taken+" NATS in use", "dev", "--state", filepath.Join(dir, "a"), "--nats-port", taken)
	failing(t, 1, taken+" Temporal in use", "dev", "--state", filepath.Join(dir, "a"), "--nats-port", "0", "--temporal-port", taken)
	failing(t, 1, taken+" UI in use", "dev", "--state", filepath.Join(dir, "a"), "--nats-port", "0", "--temporal-port", "0", "--ui-port", taken)
	failing(t, 1, taken+" S3 in use", "dev", "--state", filepath.Join(dir, "a"), "--nats-port", "0", "--temporal-port", "0", "--ui-port", "0", "--s3-port", taken)
	for _, command := range [][]string{{"runs"}, {"events"}, {"models"}, {"run", "flights-train"}} {
		failing(t, 1, "NATS refused", append(command, "--nats-url", "nats://"+nobody, "--state", dir)...)
	}
	good := "nats://" + l.Addr().String() // somebody listens: the next server is what is missing
	failing(t, 1, "Temporal refused", "runs", "--nats-url", good, "--temporal-address", nobody, "--state", dir)
	failingWith(t, 1, "S3 refused", []string{"AWS_ACCESS_KEY_ID=k", "AWS_SECRET_ACCESS_KEY=s"}, "models", "--nats-url", good, "--temporal-address", l.Addr().String(), "--s3-endpoint", "http://"+nobody, "--state", dir)

	for _, args := range [][]string{
		{"nothing"}, {"demo", "--nothing"}, {"demo", "extra"}, {"demo", "--weeks", "-1"}, {"demo", "--weeks", "x"}, {"run"},
		{"dev", "--nats-port", "x"}, {"run", "flights-train", "--param", "week", "--state", dir}, {"models", "-o", "xml", "--state", dir},
	} {
		failing(t, 2, "", args...)
	}
}

// One state directory serves one stack.
func TestStateInUse(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	p := startDev(t, state)
	failing(t, 1, fmt.Sprintf("in use by process %d", p.pid()), demo(state, "")...)
}
