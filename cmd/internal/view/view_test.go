package view_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/cmd/internal/view"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/internal/golden"
	"github.com/stokehold/stokehold/stages/drift"
)

// play makes up a run, a message every few milliseconds of a clock of its own.
type play struct {
	at   time.Time
	seq  uint64
	msgs []view.Msg
}

func (p *play) say(after time.Duration, m view.Msg) {
	p.at = p.at.Add(after)
	p.msgs = append(p.msgs, view.Tick{At: p.at}, m)
}

func (p *play) event(after time.Duration, typ, run, stage string, data any) {
	p.seq++
	at := p.at
	if r, ok := data.(drift.Report); ok { // of the data's own time
		at = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.Key+1) * flights.Week)
	}
	e, err := events.New(typ, "/stokehold/test", "flights", strconv.FormatUint(p.seq, 10), at, data)
	if err != nil {
		panic(err)
	}
	if run != "" {
		e.SetExtension(events.ExtRun, run)
	}
	if stage != "" {
		e.SetExtension(events.ExtStage, stage)
	}
	p.say(after, view.Event{Delivery: events.Delivery{Event: e, Sequence: p.seq, Deliveries: 1}})
}

var stagesOf = map[string][]string{
	"flights-train":   {"ingest", "features", "train", "evaluate", "deploy"},
	"flights-score":   {"ingest", "features", "score"},
	"flights-monitor": {"monitor"},
}

// run plays a whole run; stop leaves it in the middle of that stage.
func (p *play) run(id, pipeline, trigger string, batches int, stop string) {
	const ms = time.Millisecond
	p.event(ms, events.TypeRunStarted, "", "", events.RunStarted{Pipeline: pipeline, Run: id, Trigger: trigger})
	for _, st := range stagesOf[pipeline] {
		p.event(ms, events.TypeStageStarted, "", "", events.StageStarted{Pipeline: pipeline, Run: id, Stage: st, Attempt: 1})
		for i := range batches {
			p.event(7*ms, events.TypeBatchPublished, id, st, events.BatchPublished{Dataset: "flights/" + st, Sequence: int64(i), BodyBytes: 440_000, Tier: "hot"})
			p.say(0, view.Progress{Run: id, Stage: st, Done: int64(i + 1), Total: int64(batches), Note: "child process 4711"})
			if st == stop && i == batches/2 {
				return
			}
		}
		p.event(20*ms, events.TypeStageCompleted, "", "", events.StageCompleted{Pipeline: pipeline, Run: id, Stage: st, Attempt: 1,
			Batches: int64(batches), Leased: int64(batches), BodyBytes: int64(batches) * 440_000, Seconds: float64(batches) * 0.03})
	}
	p.event(ms, events.TypeRunCompleted, "", "", events.RunCompleted{Pipeline: pipeline, Run: id})
}

// demo is a whole demo of n live weeks.
func demo(n int) *play {
	const ms = time.Millisecond
	p := &play{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	p.say(0, view.Note{Text: "starting the stack"})
	p.say(1400*ms, view.Started{UI: "http://127.0.0.1:8233", Pipelines: stagesOf, Weeks: 19})
	p.run("flights-train-0", "flights-train", "", 7, "")
	judged := int64(0)
	for i := range n {
		week := 7 + i
		p.run(fmt.Sprint("flights-score-", week), "flights-score", "data.arrived", 1, "")
		p.run(fmt.Sprint("flights-monitor-", week), "flights-monitor", "labels.arrived", 0, "")
		x := float64(i)
		w := report.Week{Week: week, Rows: 11_000 + int64(i*37%900)}
		w.Frozen = report.Score{LogLoss: report.Float(0.44 + 0.03*math.Sin(x/2)), AUC: report.Float(0.69 - 0.02*math.Sin(x/2))}
		w.Loop = w.Frozen
		if i > 2 {
			w.Loop.LogLoss -= report.Float(0.012 + 0.01*math.Cos(x))
			w.Loop.AUC += report.Float(0.01 + 0.012*math.Cos(x))
		}
		switch i % 5 {
		case 2:
			w.Drift, w.Retrained, w.Promoted, w.Reason = true, true, true, "log loss 0.4312 < 0.4419"
		case 4:
			w.Drift, w.Retrained, w.Reason = true, true, "challenger's log loss 0.4498 is not below the champion's 0.4471"
		}
		r := drift.Report{Key: uint64(week), Rows: w.Rows, LogLoss: float64(w.Loop.LogLoss), AUC: float64(w.Loop.AUC),
			FrozenLogLoss: float64(w.Frozen.LogLoss), FrozenAUC: float64(w.Frozen.AUC), Drift: w.Drift}
		id := fmt.Sprint("flights-train-", i)
		if w.Drift {
			r.Event = strconv.FormatUint(p.seq+1, 10)
			p.event(ms, events.TypeDriftDetected, "", "", events.DriftDetected{Model: "flights", Detector: "page-hinkley", Statistic: 0.0712, Threshold: 0.05, Window: fmt.Sprint("week ", week)})
			p.event(0, events.TypeTriggerFired, "", "", events.TriggerFired{Run: id, Events: []string{r.Event}})
		}
		p.event(300*ms, flights.TypeWeekClosed, "", "", r)
		if w.Drift {
			p.run(id, "flights-train", "drift.detected", 7, "")
			if w.Promoted {
				p.event(ms, events.TypeModelPromoted, "", "", events.ModelPromoted{Run: id, Model: "flights", Version: strings.Repeat("ab", 32), Alias: "champion"})
			} else {
				p.say(ms, view.Denied{Denial: report.Denial{Type: events.TypePromotionRequested, Subject: "flights", Policy: "promotion/better", Reason: w.Reason}})
				p.event(ms, events.TypeModelRefused, "", "", events.ModelRefused{Run: id, Model: "flights", Version: strings.Repeat("cd", 32), Reason: w.Reason})
			}
		}
		p.event(ms, events.TypeTierMoved, "", "", events.TierMoved{Dataset: "flights/features", From: "warm", To: "cold"})
		judged += 40
		p.say(0, view.Counters{Judged: judged, Denied: int64(n / 5)})
	}
	return p
}

func after(msgs []view.Msg, width, height int) view.State {
	s := view.Update(view.State{Title: "demo · US flights, January to June 2001"}, view.Resize{Width: width, Height: height})
	for _, m := range msgs {
		s = view.Update(s, m)
	}
	return s
}

func moments() map[string][]view.Msg {
	start := demo(0)
	start.msgs = start.msgs[:4]
	first := demo(0)
	first.msgs = first.msgs[:4]
	first.run("flights-train-0", "flights-train", "", 7, "features")
	middle := demo(6)
	middle.run("flights-train-13", "flights-train", "drift.detected", 7, "train")
	late := demo(19)
	stopping := demo(3)
	stopping.say(0, view.Stopping{})
	done := demo(19)
	done.say(0, view.Done{})
	failed := demo(1)
	failed.event(0, events.TypeRunStarted, "", "", events.RunStarted{Pipeline: "flights-train", Run: "r9"})
	failed.event(0, events.TypeStageStarted, "", "", events.StageStarted{Pipeline: "flights-train", Run: "r9", Stage: "ingest", Attempt: 3})
	failed.event(0, events.TypeRunFailed, "", "", events.RunFailed{Pipeline: "flights-train", Run: "r9", Stage: "ingest", Reason: "column \"delay\" is missing"})
	return map[string][]view.Msg{"start": start.msgs, "first": first.msgs, "middle": middle.msgs, "late": late.msgs,
		"stopping": stopping.msgs, "done": done.msgs, "failed": failed.msgs}
}

func TestFrames(t *testing.T) {
	for name, msgs := range moments() {
		for _, size := range [][2]int{{80, 24}, {120, 40}} {
			frame := view.Frame(after(msgs, size[0], size[1]), view.NewLook(false, true))
			golden.Compare(t, fmt.Sprintf("%s-%dx%d.txt", name, size[0], size[1]), trimLines(frame))
		}
	}
}

func trimLines(s string) string {
	var b strings.Builder
	for l := range strings.SplitSeq(s, "\n") {
		b.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	return b.String()
}

func TestFramesFitAnyTerminal(t *testing.T) {
	for name, msgs := range moments() {
		s := after(msgs, 80, 24)
		for _, colour := range []bool{true, false} {
			for _, width := range []int{0, 1, 7, 20, 40, 79, 80, 81, 100, 113, 114, 120, 200, 400} {
				for _, height := range []int{0, 1, 2, 5, 10, 15, 24, 40, 100} {
					frame := view.Frame(view.Update(s, view.Resize{Width: width, Height: height}), view.NewLook(colour, true))
					lines := strings.Split(frame, "\n")
					if len(lines) > max(1, height-1) {
						t.Errorf("%s at %dx%d: %d lines", name, width, height, len(lines))
					}
					for _, l := range lines {
						if n := lipgloss.Width(l); n > max(1, width) {
							t.Errorf("%s at %dx%d: %d cells in %q", name, width, height, n, l)
						}
					}
				}
			}
		}
	}
}

func TestColourChangesNoText(t *testing.T) {
	for name, msgs := range moments() {
		plain := view.Frame(after(msgs, 120, 40), view.NewLook(false, true))
		if strings.Contains(plain, "\x1b") {
			t.Errorf("%s: escape sequences without colour", name)
		}
		for _, dark := range []bool{true, false} {
			colour := view.Frame(after(msgs, 120, 40), view.NewLook(true, dark))
			if ansi.Strip(colour) != plain {
				t.Errorf("%s: colours change the text", name)
			}
			if name != "start" && colour == plain {
				t.Errorf("%s: no colour at all", name)
			}
		}
	}
}

// The frame's height must not change from one event to the next, or the
// terminal flickers.
func TestFrameIsSteadyWhileRunsChange(t *testing.T) {
	msgs := demo(3).msgs
	s := after(nil, 80, 24)
	height := 0
	for i, m := range msgs {
		weeks := len(s.Fold.Weeks)
		s = view.Update(s, m)
		if len(s.Runs) < 3 {
			continue // the kinds of runs there are appear one after another
		}
		if len(s.Fold.Weeks) > weeks {
			height = 0 // a row more, once a week
		}
		n := strings.Count(view.Frame(s, view.Look{}), "\n")
		if height != 0 && n != height {
			t.Fatalf("message %d: %d lines, before %d", i, n, height)
		}
		height = n
	}
}

func TestUpdateLeavesTheOldStateAlone(t *testing.T) {
	s := after(nil, 120, 40)
	for _, m := range demo(5).msgs {
		before := view.Frame(s, view.Look{})
		next := view.Update(s, m)
		if again := view.Update(s, m); !reflect.DeepEqual(next, again) {
			t.Fatalf("two updates with %T differ", m)
		}
		if view.Frame(s, view.Look{}) != before {
			t.Fatalf("update with %T changed its input", m)
		}
		s = next
	}
}

func TestHostileTextStaysText(t *testing.T) {
	p := demo(1)
	bad := "a\x1b[2J\x1b]0;x\x07b\nc\rd\u009b31m"
	p.event(0, events.TypeRunStarted, "", "", events.RunStarted{Pipeline: bad, Run: bad, Trigger: bad})
	p.event(0, events.TypeStageStarted, "", "", events.StageStarted{Pipeline: bad, Run: bad, Stage: bad, Attempt: 1})
	p.say(0, view.Progress{Run: bad, Stage: bad, Done: 1, Note: bad})
	p.say(0, view.Denied{Denial: report.Denial{Type: bad, Reason: bad}})
	p.say(0, view.Note{Text: bad})
	s := after(p.msgs, 120, 40)
	if f := view.Frame(s, view.Look{}); strings.ContainsAny(f, "\x1b\x07\r\u009b") {
		t.Errorf("control characters in %q", f)
	}
	for _, m := range p.msgs {
		if l := view.Line(s, m); strings.ContainsAny(l, "\x1b\x07\r\n\u009b") {
			t.Errorf("control characters in %q", l)
		}
	}
}

func TestManyRunsAreBounded(t *testing.T) {
	p := demo(0)
	for i := range 100 {
		p.run(fmt.Sprint("r", i), "flights-score", "", 1, "features")
	}
	if n := len(after(p.msgs, 80, 24).Runs); n > 16 {
		t.Errorf("%d runs are remembered", n)
	}
}

func TestSparkline(t *testing.T) {
	for _, c := range []struct {
		values []float64
		size   int
		want   string
	}{
		{nil, 5, ""}, {[]float64{0, 0}, 5, "▁▁"}, {[]float64{0, 1, 2, 4, 8}, 5, "▁▂▃▅█"}, {[]float64{9, 1, 1}, 2, "██"}, {[]float64{1}, 0, ""},
	} {
		if got := view.Sparkline(c.values, c.size); got != c.want {
			t.Errorf("%v in %d: %q, want %q", c.values, c.size, got, c.want)
		}
	}
}

func show(t *testing.T, o view.Options, msgs []view.Msg) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	o.Out = &out
	ch := make(chan view.Msg, len(msgs))
	for _, m := range msgs {
		ch <- m
	}
	close(ch)
	if err := view.Show(ctx, o, view.State{Title: "demo", Width: 80, Height: 24}, ch); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatal("the view did not end with its channel")
	}
	return out.String()
}

func TestShowPlain(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := demo(5)
	msgs := p.msgs
	msgs = append(msgs, view.Stopping{}, view.Done{})
	got := show(t, view.Options{Plain: true, Clock: func() time.Time { at = at.Add(10 * time.Millisecond); return at }}, msgs)
	if strings.ContainsFunc(got, func(r rune) bool { return r < 0x20 && r != '\n' || r == 0x7f }) {
		t.Errorf("control characters in %q", got)
	}
	golden.Compare(t, "plain.txt", got)
}

func TestShowDrawsAndLeavesTheLastFrame(t *testing.T) {
	msgs := append(demo(2).msgs, view.Done{})
	got := show(t, view.Options{Environ: []string{"TERM=xterm-256color"}}, msgs)
	if !strings.Contains(ansi.Strip(got), "stokehold") || !strings.Contains(ansi.Strip(got), "done") {
		t.Errorf("no frame in %q", got)
	}
	if strings.Contains(got, "\x1b[?1049h") {
		t.Error("the alternate screen would take the table out of the scrollback")
	}
}

func TestShowEndsWithItsContext(t *testing.T) {
	for _, plain := range []bool{true, false} {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- view.Show(ctx, view.Options{Out: &bytes.Buffer{}, Plain: plain}, view.State{Width: 80, Height: 24}, make(chan view.Msg))
		}()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("plain=%v: %v", plain, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("plain=%v: still shown", plain)
		}
	}
}
