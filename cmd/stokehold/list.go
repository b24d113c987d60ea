package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/workflows"
)

func (a *app) version() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Args: args()}
	format := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, map[string]string{"stokehold": binaryVersion(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
		}
		fmt.Fprintf(a.env.Out, "stokehold %s (%s, %s/%s)\n", binaryVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return cmd
}

// binaryVersion is the module's version, or the commit of a build from a checkout.
func binaryVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "devel" + strings.TrimRight("-"+revision+modified, "-")
}

func (a *app) pipelines() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pipelines [PIPELINE]",
		Short: "List the pipelines of this binary, or draw one",
		Args:  args("[PIPELINE]"),
	}
	format := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, pos []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		defs, err := a.platform.Pipelines()
		if err != nil {
			return err
		}
		slices.SortFunc(defs, func(x, y *workflows.Definition) int { return cmp.Compare(x.Name, y.Name) })
		if len(pos) > 0 {
			d, err := find(defs, pos[0])
			if err != nil {
				return err
			}
			if out == asJSON {
				return writeJSON(a.env.Out, d)
			}
			fmt.Fprintf(a.env.Out, "%s: %s\n\n%s", d.Name, d.Description, d.Text())
			return nil
		}
		if out == asJSON {
			return writeJSON(a.env.Out, append([]*workflows.Definition{}, defs...))
		}
		g := grid{head: []string{"PIPELINE", "STAGES", "STARTED BY", "DESCRIPTION"}}
		for _, d := range defs {
			var by []string
			for _, t := range d.Triggers {
				by = append(by, t.Types...)
			}
			if len(by) == 0 {
				by = []string{"a person"}
			}
			g.add(d.Name, strings.Join(stageNames(d), " → "), strings.Join(by, ", "), d.Description)
		}
		return g.write(a.env)
	}
	return cmd
}

func stageNames(d *workflows.Definition) []string {
	names := make([]string, 0, len(d.Graph))
	for _, s := range d.Graph {
		names = append(names, s.Name)
	}
	return names
}

// runJSON is a run as -o json shows it.
type runJSON struct {
	ID       string      `json:"id"`
	Pipeline string      `json:"pipeline"`
	Status   string      `json:"status"`
	Trigger  string      `json:"trigger,omitempty"`
	Cause    string      `json:"cause,omitempty"`
	Started  time.Time   `json:"started"`
	Closed   *time.Time  `json:"closed,omitempty"`
	Seconds  float64     `json:"seconds"`
	History  int64       `json:"history_events"`
	Stages   []stageJSON `json:"active_stages,omitempty"`
}

type stageJSON struct {
	Stage       string `json:"stage"`
	Attempt     int    `json:"attempt"`
	State       string `json:"state"`
	Done        int64  `json:"done"`
	Total       int64  `json:"total,omitempty"`
	Note        string `json:"note,omitempty"`
	LastFailure string `json:"last_failure,omitempty"`
}

func (a *app) took(r workflows.RunInfo) time.Duration {
	if r.Closed.IsZero() {
		return a.env.Now().Sub(r.Started)
	}
	return r.Closed.Sub(r.Started)
}

func (a *app) runJSON(r workflows.RunInfo) runJSON {
	out := runJSON{ID: r.ID, Pipeline: r.Pipeline, Status: r.Status, Trigger: r.Trigger, Cause: r.Cause,
		Started: r.Started.UTC(), Seconds: a.took(r).Seconds(), History: r.HistoryEvents}
	if !r.Closed.IsZero() {
		closed := r.Closed.UTC()
		out.Closed = &closed
	}
	return out
}

func (a *app) runs() *cobra.Command {
	cmd := &cobra.Command{Use: "runs [ID]", Short: "List runs, the newest first, or look at one", Args: args("[ID]")}
	format := outputFlag(cmd)
	limit := cmd.Flags().Int("limit", 20, "list at most this `number` of runs")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		if *limit < 1 {
			return usagef("%s: --limit %d: want at least 1", cmd.CommandPath(), *limit)
		}
		sys, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		if len(pos) > 0 {
			return a.oneRun(cmd, sys, pos[0], out)
		}
		infos := []workflows.RunInfo{}
		for r, err := range sys.Runs(cmd.Context()) {
			if err != nil {
				return err
			}
			if infos = append(infos, r); len(infos) == *limit {
				break
			}
		}
		if out == asJSON {
			list := []runJSON{}
			for _, r := range infos {
				list = append(list, a.runJSON(r))
			}
			return writeJSON(a.env.Out, list)
		}
		th := a.env.theme()
		g := grid{head: []string{"RUN", "STATUS", "STARTED", "TOOK", "BY"}, right: []int{3}}
		for _, r := range infos {
			by := r.Trigger
			if by == "" {
				by = "a person"
			}
			g.add(r.ID, status(th, r.Status), when(r.Started, a.env.Now()), seconds(a.took(r)), by)
		}
		return g.write(a.env)
	}
	return cmd
}

func (a *app) oneRun(cmd *cobra.Command, sys system, id, out string) error {
	d, err := sys.Describe(cmd.Context(), id)
	if errors.Is(err, workflows.ErrRunNotFound) {
		return fmt.Errorf("%w: 'stokehold runs' lists them", err)
	}
	if err != nil {
		return err
	}
	j := a.runJSON(d.RunInfo)
	for _, s := range d.Active {
		j.Stages = append(j.Stages, stageJSON{s.Stage, s.Attempt, s.State, s.Progress.Done, s.Progress.Total, s.Progress.Note, s.LastFailure})
	}
	if out == asJSON {
		return writeJSON(a.env.Out, j)
	}
	th := a.env.theme()
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(a.env.Out, "%s %s\n", th.Dim.Render(fmt.Sprintf("%-9s", name)), value)
		}
	}
	row("run", j.ID)
	row("status", status(th, j.Status))
	row("started", when(j.Started, a.env.Now()))
	row("took", fmt.Sprintf("%.1f s", j.Seconds))
	row("by", report.Clean(j.Trigger))
	row("cause", report.Clean(j.Cause))
	if len(j.Stages) == 0 {
		return nil
	}
	fmt.Fprintln(a.env.Out)
	g := grid{head: []string{"STAGE", "STATE", "ATTEMPT", "DONE", "NOTE"}, right: []int{2, 3}}
	for _, s := range j.Stages {
		done := report.Count(s.Done)
		if s.Total > 0 {
			done += "/" + report.Count(s.Total)
		}
		g.add(s.Stage, s.State, strconv.Itoa(s.Attempt), done, report.Clean(strings.Join(notEmpty(s.Note, s.LastFailure), "; last failure: ")))
	}
	return g.write(a.env)
}

func notEmpty(parts ...string) []string {
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}

// modelJSON is a model as -o json shows it.
type modelJSON struct {
	Model    string `json:"model"`
	Versions int    `json:"versions"`
	Champion string `json:"champion,omitempty"`
}

func (a *app) models() *cobra.Command {
	cmd := &cobra.Command{Use: "models [MODEL]", Short: "List models, or the versions of one", Args: args("[MODEL]")}
	cmd.AddCommand(a.modelsDeclassify())
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		sys, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		if len(pos) > 0 {
			return a.versions(cmd, sys, pos[0], out)
		}
		list := []modelJSON{}
		for name, err := range sys.Models(cmd.Context()) {
			if err != nil {
				return err
			}
			m := modelJSON{Model: name}
			for _, err := range sys.Versions(cmd.Context(), name) {
				if err != nil {
					return err
				}
				m.Versions++
			}
			champion, err := sys.Alias(cmd.Context(), name, models.Champion)
			if err != nil && !errors.Is(err, models.ErrNotFound) {
				return err
			}
			m.Champion = champion.ID
			list = append(list, m)
		}
		if out == asJSON {
			return writeJSON(a.env.Out, list)
		}
		g := grid{head: []string{"MODEL", "VERSIONS", "CHAMPION"}, right: []int{1}}
		for _, m := range list {
			g.add(m.Model, strconv.Itoa(m.Versions), report.Short(m.Champion))
		}
		return g.write(a.env)
	}
	return cmd
}

func (a *app) versions(cmd *cobra.Command, sys system, model, out string) error {
	champion, err := sys.Alias(cmd.Context(), model, models.Champion)
	if err != nil && !errors.Is(err, models.ErrNotFound) {
		return err
	}
	list := []models.Version{}
	for v, err := range sys.Versions(cmd.Context(), model) {
		if err != nil {
			return err
		}
		list = append(list, v)
	}
	if len(list) == 0 {
		return fmt.Errorf("no model %q: 'stokehold models' lists them", model)
	}
	if out == asJSON {
		return writeJSON(a.env.Out, list)
	}
	th := a.env.theme()
	g := grid{head: []string{"VERSION", "STATUS", "CREATED", "SIZE", "METRICS", "REASON"}, right: []int{3}}
	labelled := slices.ContainsFunc(list, func(v models.Version) bool { return len(v.Labels) > 0 })
	if labelled {
		g.head = append(g.head, "LABELS")
	}
	for _, v := range list {
		id := report.Short(v.ID)
		if v.ID == champion.ID {
			id += " " + th.Good.Render("★")
		}
		row := []string{id, status(th, string(v.Status)), when(v.Created, a.env.Now()), report.Bytes(v.Bytes), metrics(v.Metrics), report.Clean(v.Reason)}
		if labelled {
			row = append(row, report.Clean(strings.Join(v.Labels, " ")))
		}
		g.add(row...)
	}
	return g.write(a.env)
}

// mostMetrics is how many a line of a table shows; JSON has all.
const mostMetrics = 4

func metrics(m map[string]float64) string {
	names := slices.Sorted(maps.Keys(m))
	var parts []string
	for _, name := range names[:min(len(names), mostMetrics)] {
		parts = append(parts, name+" "+report.Number(m[name]))
	}
	if more := len(names) - len(parts); more > 0 {
		parts = append(parts, fmt.Sprintf("… %d more", more))
	}
	return strings.Join(parts, "  ")
}
