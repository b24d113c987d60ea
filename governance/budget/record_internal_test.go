package budget

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever the network does to reports, what is counted is the newest of each
// attempt that arrived, once.
func TestReportsCountOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent []Report
		for a := range rapid.IntRange(1, 6).Draw(t, "attempts") {
			r := Report{Run: "p/r", Stage: fmt.Sprint("s", a%2), Attempt: 1 + a/2}
			n := rapid.IntRange(1, 5).Draw(t, "reports")
			for i := range n {
				day := rapid.SampledFrom([]string{"2026-11-28", "2026-11-29"}).Draw(t, "day")
				u := Use{Day: day, Team: "ml", Accelerator: rapid.SampledFrom([]string{CPU, "h100"}).Draw(t, "kind"),
					Seconds: Micro(rapid.Int64Range(0, 1e12).Draw(t, "µs")), Money: Micro(rapid.Int64Range(0, 1e9).Draw(t, "money"))}
				r.Used = add(slices.Clone(r.Used), []Use{u})
				r.Number += rapid.Int64Range(1, 3).Draw(t, "step")
				r.Final = i == n-1 && rapid.Bool().Draw(t, "says that it ended")
				sent = append(sent, r)
			}
		}
		// Lost, repeated, in any order; but a report that is final came to be after
		// those before it, which may come later.
		arrived := rapid.SliceOfN(rapid.SampledFrom(sent), 0, 4*len(sent)).Draw(t, "arrive")
		var rec record
		newest := map[string]Report{}
		for _, r := range arrived {
			if _, err := rec.take(&r); err != nil {
				t.Fatalf("%+v: %v", r, err)
			}
			key := fmt.Sprint(r.Stage, r.Attempt)
			if have, ok := newest[key]; !ok || r.Number > have.Number {
				newest[key] = r
			}
			raw, err := json.Marshal(rec) // as it goes through the bucket
			if err != nil {
				t.Fatal(err)
			}
			rec = record{}
			if err := json.Unmarshal(raw, &rec); err != nil {
				t.Fatal(err)
			}
		}
		var want []Use
		for _, r := range newest {
			want = add(want, r.Used)
		}
		if got := rec.total(); !covers(got, want) || !covers(want, got) {
			t.Fatalf("counted %v, want %v", got, want)
		}
	})
}

func TestContradictionsAreRefused(t *testing.T) {
	use := func(s Micro) []Use { return []Use{{Day: "2026-11-28", Accelerator: CPU, Seconds: s}} }
	var rec record
	for _, c := range []struct {
		number  int64
		seconds Micro
		want    error
	}{{2, 20, nil}, {2, 20, nil}, {2, 21, ErrConflict}, {1, 30, ErrConflict}, {3, 10, ErrConflict}, {1, 5, nil}, {3, 20, nil}} {
		_, err := rec.take(&Report{Run: "r", Stage: "s", Attempt: 1, Number: c.number, Used: use(c.seconds)})
		if !errors.Is(err, c.want) {
			t.Errorf("report %d of %d: %v, want %v", c.number, c.seconds, err, c.want)
		}
	}
	if got := rec.total(); len(got) != 1 || got[0].Seconds != 20 {
		t.Errorf("counted %v", got)
	}
}

// A stage that is killed again and again, and a run of a year, keep a record of
// bounded size with the right sum.
func TestRecordStaysSmall(t *testing.T) {
	var rec record
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const attempts = 1500
	for a := range attempts {
		at := day.AddDate(0, 0, a/10)
		r := Report{Run: "r", Stage: "s", Attempt: a + 1, Number: 1, Final: a%3 == 0, Used: []Use{{Day: at.Format(time.DateOnly), Accelerator: CPU, Seconds: 1}}}
		if _, err := rec.take(&r); err != nil {
			t.Fatal(err)
		}
		rec.forget(at)
	}
	raw, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	var sum Micro
	for _, u := range rec.total() {
		sum += u.Seconds
	}
	if sum != attempts || len(raw) > 64<<10 {
		t.Errorf("sum %d of %d, in %d bytes", sum, attempts, len(raw))
	}
}

func TestDecimals(t *testing.T) {
	for text, want := range map[string]Micro{"0": 0, "12": 12e6, "12.5": 12_500_000, "0.000001": 1, "1000000000": maxAmount} {
		got, err := ParseMicro(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %d (%s), %v", text, got, got, err)
		}
	}
	for _, text := range []string{"", "-1", "1e3", "1.", ".5", "0.0000001", "1000000001", "99999999999", "NaN", "1_0", "٣"} {
		if _, err := ParseMicro(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, c := range []struct {
		price string
		used  Micro
		want  string
	}{{"0.000833333", 3600e6, "2.999998"}, {"1000000000", maxAmount, "1000000000"}, {"0", 1e9, "0"}, {"0.000000001", 999e6, "0"}} {
		p, err := ParsePrice(c.price)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.cost(c.used); got.String() != c.want {
			t.Errorf("%s for %s s is %s, want %s", c.price, c.used, got, c.want)
		}
	}
}
