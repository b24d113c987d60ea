package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/workflows"
)

// person is the approver that there is outside tests.
type person struct {
	app   *stokehold.App
	claim string // the name given; "": the credentials tell
}

func connectPerson(ctx context.Context, cfg config.Config) (approver, error) {
	app, err := stokehold.ConnectApprovals(ctx, settings(cfg))
	if err != nil {
		return nil, err
	}
	return &person{app, cfg.Actor}, nil
}

func (p *person) Approvals(ctx context.Context, all bool) ([]approval.Status, error) {
	return p.app.Approvals.List(ctx, all)
}

var errNobody = errors.New("who are you? The NATS credentials are of nobody in the document of actors: use your own, or give --actor NAME")

func (p *person) Vote(ctx context.Context, id string, approve bool, reason string) (approval.Status, error) {
	actor, err := p.app.Whoami(ctx, p.claim)
	if err != nil {
		return approval.Status{}, err
	}
	if actor == "" {
		return approval.Status{}, errNobody
	}
	st, err := p.app.Approvals.Vote(ctx, id, actor, approve, reason)
	if err != nil || st.Workflow == "" {
		return st, err
	}
	if err := workflows.TellApproval(ctx, p.app.Temporal, st.Workflow, st.ID); err != nil {
		return st, fmt.Errorf("the vote is recorded, but the run was not told and will look for itself: %w", err)
	}
	return st, nil
}

func (p *person) Close(ctx context.Context) error { return p.app.Close(ctx) }

// connectApprover is connect for an approver.
func (a *app) connectApprover(cmd *cobra.Command) (approver, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	cfg.S3.Endpoint = "" // not needed
	if err := reach(cmd.Context(), cfg); err != nil {
		return nil, err
	}
	return a.platform.Approve(cmd.Context(), cfg)
}

// approvalJSON is a request as -o json shows it.
type approvalJSON struct {
	approval.Request
	Deadline time.Time        `json:"deadline"`
	Outcome  approval.Outcome `json:"outcome"`
}

func approvalAsJSON(st approval.Status) approvalJSON {
	return approvalJSON{st.Request, st.Deadline().UTC(), st.Outcome}
}

// shownDigits is how much of an id a table shows: enough for approve and reject.
const shownDigits = 12

func (a *app) approvals() *cobra.Command {
	cmd := &cobra.Command{Use: "approvals", Short: "List what waits for people to approve it", Args: args()}
	format := outputFlag(cmd)
	all := cmd.Flags().Bool("all", false, "the decided and expired ones too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		sys, err := a.connectApprover(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		list, err := sys.Approvals(cmd.Context(), *all)
		if err != nil {
			return err
		}
		if out == asJSON {
			found := []approvalJSON{}
			for _, st := range list {
				found = append(found, approvalAsJSON(st))
			}
			return writeJSON(a.env.Out, found)
		}
		th := a.env.theme()
		g := grid{head: []string{"APPROVAL", "STATE", "ASKED", "UNTIL", "WHAT", "BY", "WHY"}}
		for _, st := range list {
			g.add(st.ID[:min(shownDigits, len(st.ID))], status(th, string(st.Outcome.State)), when(st.Created, a.env.Now()), st.Deadline().Local().Format("2006-01-02 15:04"),
				report.Clean(st.Type+" "+st.Subject), report.Clean(progress(st)), report.Clean(whyAsked(st)))
		}
		return g.write(a.env)
	}
	return cmd
}

// progress says who has approved, of how many, with which roles.
func progress(st approval.Status) string {
	s := fmt.Sprintf("%d/%d", len(st.Outcome.By()), st.Quorum)
	if len(st.Roles) > 0 {
		s += " " + strings.Join(st.Roles, "|")
	}
	return s
}

// whyAsked is why people are asked or, of what is decided, what they said.
func whyAsked(st approval.Status) string {
	if st.Outcome.State == approval.Pending {
		return st.Reason
	}
	return st.Outcome.Reason
}

// vote is approve or reject.
func (a *app) vote(approve bool) *cobra.Command {
	name, done, short := "reject", "rejected", "Reject what waits for approval: the event is denied"
	if approve {
		name, done, short = "approve", "approved", "Approve what waits for it; the run goes on once enough have"
	}
	cmd := &cobra.Command{Use: name + " ID", Short: short, Args: args("ID")}
	format := outputFlag(cmd)
	reason := cmd.Flags().String("reason", "", "why, one `line` for the record; required")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		if strings.TrimSpace(*reason) == "" {
			return usagef("%s: --reason is missing: it goes on the record", cmd.CommandPath())
		}
		sys, err := a.connectApprover(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		st, err := sys.Vote(cmd.Context(), pos[0], approve, *reason)
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, approvalAsJSON(st))
		}
		note := ""
		if st.Outcome.State == approval.Pending {
			note = fmt.Sprintf(": %d of %d, waits for more until %s", len(st.Outcome.By()), st.Quorum, st.Deadline().Local().Format("2006-01-02 15:04"))
		}
		fmt.Fprintf(a.env.Out, "%s %s %s %s%s\n", st.ID[:min(shownDigits, len(st.ID))], done, report.Clean(st.Type), report.Clean(st.Subject), note)
		return nil
	}
	return cmd
}
