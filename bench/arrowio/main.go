// Command arrowio measures what it takes to hand one record batch from a Go
// process to another process, Go or Python: Stokehold's shared memory against what
// else there is, all in one run and in turns, so that a noisy machine disturbs all
// alike. It prints a table and writes it as JSON. README.md says what each line
// means and how the others are set up.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stokehold/stokehold/internal/benchtable"
)

func main() {
	runIfChild()
	// The first Ctrl-C ends what is being measured and cleans up, the second ends
	// this process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "arrowio:", err)
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	rounds  int
	seconds float64
	sizes   []int64
	only    []string
	skip    []string
	python  string
	root    string
	out     string
	goOnly  bool
	list    bool
	profile string
}

func parse(args []string) (settings, error) {
	var s settings
	var sizes, only, skip string
	fs := flag.NewFlagSet("arrowio", flag.ContinueOnError)
	fs.IntVar(&s.rounds, "rounds", 7, "rounds; in each one every case is measured once, and the median of the rounds counts")
	fs.Float64Var(&s.seconds, "seconds", 0.5, "most seconds that one size of one case takes in one round, beyond three hand-overs")
	fs.StringVar(&sizes, "sizes", "1KiB,64KiB,1MiB,16MiB,256MiB", "bytes of batch, at most 1GiB; 4KiB is added where a case needs it")
	fs.StringVar(&only, "only", "", "measure the cases whose name contains one of these, separated by semicolons; =NAME for exactly one")
	fs.StringVar(&skip, "skip", "", "leave out the cases whose name contains one of these")
	fs.StringVar(&s.python, "python", "", "interpreter for the Python cases; default ROOT/.bench/venv/bin/python, which task bench:arrowio:setup makes")
	fs.StringVar(&s.root, "root", "", "the repository; default the directory above this one that has go.work")
	fs.StringVar(&s.out, "o", ".bench/arrowio.json", "where the table goes as JSON")
	fs.BoolVar(&s.goOnly, "go", false, "measure the cases without Python alone")
	fs.BoolVar(&s.list, "list", false, "print the names of the cases")
	fs.StringVar(&s.profile, "cpuprofile", "", "write a CPU profile of this process (not of the consumers)")
	if err := fs.Parse(args); err != nil {
		return s, err
	}
	if s.rounds < 1 || s.rounds > 1000 || s.seconds <= 0 || s.seconds > 3600 {
		return s, fmt.Errorf("-rounds %d -seconds %g: want 1 to 1000 rounds and up to 3600 s", s.rounds, s.seconds)
	}
	for _, f := range strings.Split(sizes, ",") {
		n, err := parseSize(f)
		if err != nil {
			return s, err
		}
		s.sizes = append(s.sizes, n)
	}
	if only != "" {
		s.only = strings.Split(only, ";")
	}
	if skip != "" {
		s.skip = strings.Split(skip, ";")
	}
	var err error
	if s.root == "" {
		if s.root, err = findRoot(); err != nil {
			return s, err
		}
	}
	s.python = cmp.Or(s.python, filepath.Join(s.root, ".bench/venv/bin/python"))
	return s, nil
}

// parseSize reads "64KiB". A batch has 4 columns of whole pages or of 256 bytes at
// least, so that none of them needs padding.
func parseSize(s string) (int64, error) {
	number, unit := s, int64(1)
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}} {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = rest, u.bytes
		}
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n < 1 || n > (1<<30)/unit || n*unit%1024 != 0 {
		return 0, fmt.Errorf("-sizes: %q: want a multiple of 1KiB, at most 1GiB", s)
	}
	return n * unit, nil
}

func sizeName(n int64) string {
	switch {
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	default:
		return fmt.Sprintf("%d B", n)
	}
}

func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.work above this directory: start it in the repository, or set -root")
		}
		dir = up
	}
}

func run(ctx context.Context, args []string) (err error) {
	set, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	all := wanted(set)
	if set.list {
		for _, c := range all {
			fmt.Println(c.name)
		}
		return nil
	}
	stop, err := startProfile(set.profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	// Short: sockets are made in it.
	dir, err := os.MkdirTemp("", "shb")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{
		env: env{dir: dir, root: set.root, python: set.python, sizes: set.sizes}, set: set,
		results: map[string]map[int64]*result{}, missing: map[string]string{}, versions: map[string]string{},
	}
	begun := time.Now()
	if err := b.measure(ctx, all); err != nil {
		return err
	}
	rows := b.rows(all)
	if err := b.print(os.Stdout, rows, all, time.Since(begun)); err != nil {
		return err
	}
	return benchtable.Write(set.out, rows)
}

// wanted are the cases that the settings ask for.
func wanted(set settings) []benchCase {
	var found []benchCase
	for _, c := range cases() {
		if set.goOnly && c.python {
			continue
		}
		if len(set.only) > 0 && !containsAny(c.name, set.only) || containsAny(c.name, set.skip) {
			continue
		}
		found = append(found, c)
	}
	return found
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if p != "" && (strings.Contains(s, p) || "="+s == p) {
			return true
		}
	}
	return false
}
