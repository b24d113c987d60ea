package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func (a *app) policyExplain() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [PATH...]",
		Short: "Say which policies match an event, what each rule makes of it, and by which values",
		Long: `Explain decides an event, of a file or of the stream, by the policies of PATHs or
else by those in force, and shows the values that decided each rule. What they read
beside the event is asked for now, and may have changed since it was judged.`,
		Example: `  stokehold policy explain --id drift-42
  stokehold events --json | grep promotion | tail -1 | stokehold policy explain policies/ --event -`,
	}
	format := outputFlag(cmd)
	file := cmd.Flags().String("event", "", "`file` with the event as JSON, as 'stokehold events --json' prints it; - reads standard input")
	id := cmd.Flags().String("id", "", "`id` of an event in the stream instead")
	point := cmd.Flags().String("point", string(events.OnPublish), "`point` at which it is judged: publish or receive")
	at := cmd.Flags().String("now", "", "`time` of judging, RFC 3339 (default: the event's)")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		if (*file == "") == (*id == "") {
			return usagef("%s: say which event: --event FILE or --id ID", cmd.CommandPath())
		}
		if *point != string(events.OnPublish) && *point != string(events.OnReceive) {
			return usagef("%s: --point %q: want publish or receive", cmd.CommandPath(), *point)
		}
		var desk *stokehold.PolicyDesk
		if *id != "" || len(pos) == 0 {
			if desk, _, err = a.desk(cmd); err != nil {
				return err
			}
			defer closing(cmd.Context(), &err, desk.Close)
		}
		ev, err := a.theEvent(cmd.Context(), desk, *file, *id)
		if err != nil {
			return err
		}
		now := ev.Time()
		if *at != "" {
			if now, err = time.Parse(time.RFC3339, *at); err != nil {
				return usagef("%s: --now %q: want a time such as 2026-01-02T15:04:05Z", cmd.CommandPath(), *at)
			}
		}
		x, err := a.explainer(cmd.Context(), desk, pos)
		if err != nil {
			return a.sayFaults(err)
		}
		k := knownFacts(cmd.Context(), desk)
		x.Suppose(k.sources, nil)
		e, err := x.Explain(cmd.Context(), events.Point(*point), now, ev)
		if err != nil {
			return err
		}
		if out == asJSON {
			d := &e.Decision
			return writeJSON(a.env.Out, map[string]any{"event": ev.ID(), "decision": decided{d.Action, by(d), d.Reason}, "policies": e.Policies, "facts": k.of(e.Facts)})
		}
		a.sayExplanation(ev, e)
		k.say(a.env.Out, e.Facts)
		return nil
	}
	return cmd
}

// explainer loads the policies of paths, or those in force.
func (a *app) explainer(ctx context.Context, desk *stokehold.PolicyDesk, pos []string) (*governance.Explainer, error) {
	if len(pos) == 0 {
		f, err := desk.InForce(ctx)
		if err != nil {
			return nil, err
		}
		return governance.NewExplainer(f.Options, f.Sources...)
	}
	opts, err := a.types()
	if err != nil {
		return nil, err
	}
	srcs, err := governance.ReadPaths(pos...)
	if err != nil {
		return nil, err
	}
	return governance.NewExplainer(opts, srcs...)
}

// theEvent reads an event of a file, or the newest of an id in the stream.
func (a *app) theEvent(ctx context.Context, desk *stokehold.PolicyDesk, file, id string) (_ *events.Event, err error) {
	if file != "" {
		raw, err := a.read(file)
		if err != nil {
			return nil, fmt.Errorf("event: %w", err)
		}
		var ev events.Event
		if err := json.Unmarshal(raw, &ev); err != nil {
			return nil, fmt.Errorf("event: %s is not one CloudEvent in JSON: %w", file, err)
		}
		return &ev, nil
	}
	var found *events.Event
	for ev, err := range recorded(ctx, desk) {
		if err != nil && !errors.As(err, new(*skippedError)) {
			return nil, err
		}
		if err == nil && ev.ID() == id {
			found = ev
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no event %s in the stream: 'stokehold events' lists them; a refused one is in the decision log alone, without its data", id)
	}
	return found, nil
}

// skippedError is a message of the stream that is no event.
type skippedError struct{ err error }

func (e *skippedError) Error() string { return e.err.Error() }
func (e *skippedError) Unwrap() error { return e.err }

// recorded yields the events in the stream, one at a time.
func recorded(ctx context.Context, desk *stokehold.PolicyDesk) iter.Seq2[*events.Event, error] {
	return func(yield func(*events.Event, error) bool) {
		bus, err := desk.Read(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer closing(ctx, &err, bus.Close)
		for d, err := range bus.Replay(ctx, events.Subscription{}) {
			if err != nil && d.Sequence > 0 {
				err = &skippedError{err}
			}
			if !yield(&d.Event, err) {
				return
			}
		}
	}
}

func (a *app) sayExplanation(ev *events.Event, e *governance.Explanation) {
	th := a.env.theme()
	d := &e.Decision
	fmt.Fprintf(a.env.Out, "event %s of type %s", report.Clean(ev.ID()), report.Clean(ev.Type()))
	if s := ev.Subject(); s != "" {
		fmt.Fprintf(a.env.Out, ", subject %s", report.Clean(s))
	}
	fmt.Fprintf(a.env.Out, "\n%s", action(th, d.Action))
	if s := by(d); s != "" {
		fmt.Fprintf(a.env.Out, " by %s", s)
	}
	if d.Reason != "" {
		fmt.Fprintf(a.env.Out, ": %s", report.Clean(d.Reason))
	}
	fmt.Fprintln(a.env.Out)
	for _, p := range e.Policies {
		if p.Unmatched != "" {
			continue
		}
		fmt.Fprintf(a.env.Out, "\npolicy %s, mode %s\n", p.Name, p.Mode)
		for _, r := range p.Rules {
			mark := th.Good.Render("held  ")
			switch r.Outcome {
			case governance.Failed:
				mark = th.Bad.Render("failed")
			case governance.Errors:
				mark = th.Bad.Render("error ")
			case governance.Held:
			}
			line := fmt.Sprintf("  %s %s", mark, r.Name)
			if r.Outcome != governance.Held {
				line += fmt.Sprintf(" → %s: %s", action(th, r.Effect), report.Clean(r.Reason))
			}
			fmt.Fprintln(a.env.Out, line)
			for _, v := range r.Values {
				fmt.Fprintf(a.env.Out, "         %s %s\n", th.Dim.Render(report.Clean(v.Expression)+" ="), report.Clean(v.Value))
			}
		}
	}
	first := true
	for _, p := range e.Policies {
		if p.Unmatched != "" {
			if first {
				fmt.Fprintln(a.env.Out)
			}
			first = false
			fmt.Fprintf(a.env.Out, "%s\n", th.Dim.Render("policy "+p.Name+" has no say: "+report.Clean(p.Unmatched)))
		}
	}
}

func (a *app) policyReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Decide the recorded events again by other policies, and print each decision that changes",
		Long: `Replay decides each event in the stream by the policies in force and by those of
--policy, both at the time of the event, and prints where they differ. Exit code
3: some do. Events that were refused are not in the stream, so that nothing can be
said of them. Facts are what the deployment says now, for both sets.`,
		Example: `  stokehold policy replay --since 24h --policy new.yaml`,
		Args:    args(),
	}
	format := outputFlag(cmd)
	since := cmd.Flags().String("since", "", "only events whose own time is not before this `time`: a duration (24h) or RFC 3339")
	files := cmd.Flags().StringSlice("policy", nil, "the policy `files` or directories to decide by; repeatable")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		from, err := parseSince(*since, a.env.Now())
		if err != nil {
			return usagef("%s: --since: %w", cmd.CommandPath(), err)
		}
		if len(*files) == 0 {
			return usagef("%s: missing --policy: which policies to decide by", cmd.CommandPath())
		}
		// Here the flag says what to compare with, not what is in force.
		cmd.Flags().Lookup("policy").Changed = false
		desk, _, err := a.desk(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, desk.Close)
		r := replay{from: from, found: func(c changed) error { return a.sayChanged(c, out) }}
		if err := r.load(cmd.Context(), desk, *files); err != nil {
			return a.sayFaults(err)
		}
		if err := r.run(cmd.Context(), desk); err != nil {
			return err
		}
		return a.sayReplayed(&r, out)
	}
	return cmd
}

// replay compares two sets of policies on what is in the stream.
type replay struct {
	from          time.Time
	before, after *governance.Evaluator
	found         func(changed) error
	facts         known
	reads         []string // facts that either set reads

	events, skipped, changes int
}

// changed is an event that other policies decide otherwise.
type changed struct {
	Event   string    `json:"event"`
	Type    string    `json:"type"`
	Subject string    `json:"subject,omitempty"`
	Time    time.Time `json:"time"`
	Before  decided   `json:"before"`
	After   decided   `json:"after"`
}

type decided struct {
	Action events.Action `json:"action"`
	By     string        `json:"by,omitempty"`
	Reason string        `json:"reason,omitempty"`
}

func (r *replay) load(ctx context.Context, desk *stokehold.PolicyDesk, files []string) error {
	f, err := desk.InForce(ctx)
	if err != nil {
		return err
	}
	in, err := governance.Load(f.Options, f.Sources...)
	if err != nil {
		return err
	}
	next, err := governance.LoadPaths(f.Options, files...)
	if err != nil {
		return err
	}
	if r.before, err = governance.NewEvaluator(in); err != nil {
		return err
	}
	if r.after, err = governance.NewEvaluator(next); err != nil {
		return err
	}
	r.reads = slices.Compact(slices.Sorted(slices.Values(append(in.Facts(), next.Facts()...))))
	if len(r.reads) > 0 {
		r.facts = knownFacts(ctx, desk)
	}
	r.before.Suppose(r.facts.sources, nil)
	r.after.Suppose(r.facts.sources, nil)
	return nil
}

// run holds one event at a time.
func (r *replay) run(ctx context.Context, desk *stokehold.PolicyDesk) error {
	for ev, err := range recorded(ctx, desk) {
		switch {
		case errors.As(err, new(*skippedError)):
			r.skipped++
			continue
		case err != nil:
			return err
		case ev.Time().Before(r.from):
			continue
		}
		r.events++
		before, err := r.before.Decide(ctx, events.OnPublish, ev.Time(), ev)
		if err != nil {
			return err
		}
		after, err := r.after.Decide(ctx, events.OnPublish, ev.Time(), ev)
		if err != nil {
			return err
		}
		if before.Action == after.Action && (before.Action.Permits() || before.Policy == after.Policy && before.Rule == after.Rule) {
			continue
		}
		r.changes++
		c := changed{Event: ev.ID(), Type: ev.Type(), Subject: ev.Subject(), Time: ev.Time().UTC(),
			Before: decided{before.Action, by(&before), before.Reason}, After: decided{after.Action, by(&after), after.Reason}}
		if err := r.found(c); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) sayChanged(c changed, out string) error {
	if out == asJSON {
		raw, err := json.Marshal(c)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.env.Out, "%s\n", raw)
		return err
	}
	th := a.env.theme()
	side := func(d decided) string { return strings.TrimSpace(action(th, d.Action) + " " + report.Clean(d.By)) }
	_, err := fmt.Fprintf(a.env.Out, "%s %s %s %s: %s → %s: %s\n", th.Dim.Render(c.Time.Format(time.RFC3339)), th.Accent.Render(report.Clean(c.Type)),
		report.Clean(c.Event), report.Clean(c.Subject), side(c.Before), side(c.After), report.Clean(c.After.Reason))
	return err
}

func (a *app) sayReplayed(r *replay, out string) error {
	if out != asJSON {
		fmt.Fprintf(a.env.Out, "%s decided again", plural(r.events, "event", "events"))
		if r.skipped > 0 {
			fmt.Fprintf(a.env.Out, ", %d that cannot be read left out", r.skipped)
		}
		fmt.Fprintln(a.env.Out, "; those that were refused are not in the stream")
		r.facts.say(a.env.Out, r.reads)
	}
	if r.changes > 0 {
		return &differsError{fmt.Errorf("%s would change", plural(r.changes, "decision", "decisions"))}
	}
	return nil
}
