package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
)

func (a *app) events() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show the events on the bus",
		Long: `Events shows what is in the stream, oldest first, and with --follow also what
comes. An event that is malformed or that governance refuses to this reader is
reported on standard error.`,
		Example: `  stokehold events --follow
  stokehold events --type drift.detected --type model.promoted --since 1h
  stokehold events --json | jq .type`,
		Args: args(),
	}
	follow := cmd.Flags().BoolP("follow", "f", false, "wait for more")
	types := cmd.Flags().StringSlice("type", nil, "only events of this `type`; repeatable")
	since := cmd.Flags().String("since", "", "only events whose own time is not before this `time`: a duration (10m) or RFC 3339")
	asLines := cmd.Flags().Bool("json", false, "one CloudEvent in JSON per line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		from, err := parseSince(*since, a.env.Now())
		if err != nil {
			return usagef("%s: --since: %w", cmd.CommandPath(), err)
		}
		sys, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		last := uint64(0)
		show := func(_ context.Context, d events.Delivery) error {
			last = max(last, d.Sequence)
			if d.Time().Before(from) {
				return nil
			}
			return a.show(d, *asLines)
		}
		for d, err := range sys.History(cmd.Context(), events.Subscription{Types: *types}) {
			if errors.Is(err, events.ErrUnavailable) || err != nil && d.Sequence == 0 {
				return err
			}
			if err != nil {
				last = max(last, d.Sequence)
				fmt.Fprintf(a.env.Err, "stokehold: event %d: %s\n", d.Sequence, oneLine(err))
				continue
			}
			if err := show(cmd.Context(), d); err != nil {
				return err
			}
		}
		if !*follow {
			return context.Cause(cmd.Context())
		}
		// From the one after the last shown: nothing that came in between is missed.
		return sys.Follow(cmd.Context(), events.Subscription{Types: *types, Start: last + 1}, show)
	}
	return cmd
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a duration such as 10m nor a time such as 2026-01-02T15:04:05Z", s)
}

func (a *app) show(d events.Delivery, asLines bool) error {
	if asLines {
		raw, err := json.Marshal(d.Event)
		if err != nil {
			return fmt.Errorf("event %d: %w", d.Sequence, err)
		}
		_, err = fmt.Fprintf(a.env.Out, "%s\n", raw)
		return err
	}
	th := a.env.theme()
	data := report.Clean(string(d.Data()))
	line := fmt.Sprintf("%s %s %s", th.Dim.Render(fmt.Sprintf("%6d %s", d.Sequence, d.Time().Local().Format("15:04:05.000"))),
		th.Accent.Render(fmt.Sprintf("%-24s", d.Type())), report.Clean(d.Subject()))
	if a.env.Terminal {
		room := a.env.width() - 6 - 1 - 12 - 1 - max(24, len(d.Type())) - 1 - len(d.Subject()) - 2
		data = cut(data, room)
	}
	_, err := fmt.Fprintf(a.env.Out, "%s  %s\n", line, th.Dim.Render(data))
	return err
}

// cut shortens s to n cells.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n <= 1 {
		return ""
	}
	return string(r[:n-1]) + "…"
}
