package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
)

func (a *app) policyKeygen() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a key that signs policy bundles; print the line that makes others trust it",
		Example: `  stokehold policy keygen --name alice alice.key >> trusted
  stokehold policy apply --key alice.key policies/`,
		Args: args("FILE"),
	}
	name := cmd.Flags().String("name", "", "`name` of the key, for people: 1 to 63 of a-z, 0-9 and -._@ (default: the user's)")
	cmd.RunE = func(_ *cobra.Command, pos []string) error {
		if *name == "" {
			*name = strings.ToLower(a.author(""))
		}
		key, err := bundle.NewSigningKey(*name)
		if err != nil {
			return err
		}
		if err := key.Write(pos[0]); err != nil {
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s is there already: a signing key is not overwritten", pos[0])
			}
			return err
		}
		_, err = fmt.Fprintln(a.env.Out, key.Public())
		return err
	}
	return cmd
}

// signing are the flags of what makes a bundle.
type signing struct {
	key, name, author, reason, def string
	version                        uint64
}

func (s *signing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.key, "key", "", "`file` of the signing key (default "+stokehold.PolicyKeyFile+" in the state directory)")
	cmd.Flags().StringVar(&s.author, "author", "", "who makes it, for people (default: the user)")
	cmd.Flags().StringVar(&s.reason, "reason", "", "why, in one line; goes on record")
	cmd.Flags().StringVar(&s.def, "default", "", "`action` for events that no policy matches: allow or deny (default: as before, or allow)")
	cmd.Flags().Uint64Var(&s.version, "version", 0, "`number` of the version (default: the next)")
}

func (s *signing) open(state string) (*bundle.SigningKey, error) {
	path := s.key
	if path == "" {
		path = filepath.Join(state, stokehold.PolicyKeyFile)
	}
	key, err := bundle.ReadSigningKey(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no signing key %s: name one with --key, or make one with 'stokehold policy keygen'", path)
	}
	return key, err
}

// author is who makes a bundle.
func (a *app) author(given string) string {
	if given != "" {
		return given
	}
	for _, v := range []string{"USER", "LOGNAME"} {
		if s, ok := a.env.lookup(v); ok && s != "" {
			return s
		}
	}
	return "unknown"
}

// draft reads and checks policies for a bundle.
func (a *app) draft(s *signing, opts governance.Options, pos []string) (bundle.Draft, *governance.PolicySet, error) {
	d := bundle.Draft{Name: s.name, Author: a.author(s.author), Reason: s.reason, Created: a.env.Now(), Default: opts.Default, Types: opts.Types}
	if s.def != "" {
		d.Default = events.Action(s.def)
	}
	if d.Default != "" && d.Default != events.Allow && d.Default != events.Deny {
		return d, nil, usagef("--default %q: want allow or deny", s.def)
	}
	set, err := governance.LoadPaths(governance.Options{Types: opts.Types, Default: d.Default}, pos...)
	if err != nil {
		return d, nil, a.sayFaults(err)
	}
	d.Sources, err = bundle.ReadSources(pos...)
	return d, set, err
}

func (a *app) policySign() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sign PATH...",
		Short: "Make a bundle of policies, or add a signature to one, for 'policy apply' elsewhere",
		Example: `  stokehold policy sign --key alice.key --version 7 policies/ > flights.bundle
  stokehold policy sign --key bob.key flights.bundle > both.bundle`,
		Args: paths,
	}
	var s signing
	s.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		cfg, err := a.load(cmd)
		if err != nil {
			return err
		}
		key, err := s.open(cfg.StateDir)
		if err != nil {
			return err
		}
		var b *bundle.Bundle
		if file, ok := onlyBundle(pos); ok {
			b, err = coSign(file, cfg, key)
		} else {
			if s.version == 0 {
				return usagef("%s: missing --version: without a server there is no next one", cmd.CommandPath())
			}
			var opts governance.Options
			if opts, err = a.types(); err != nil {
				return err
			}
			var d bundle.Draft
			if d, _, err = a.draft(&s, opts, pos); err == nil {
				d.Position = bundle.Position{Version: s.version}
				b, err = bundle.Create(d, key)
			}
		}
		if err != nil {
			return err
		}
		_, err = a.env.Out.Write(b.Bytes())
		return err
	}
	return cmd
}

func coSign(file string, cfg config.Config, key *bundle.SigningKey) (*bundle.Bundle, error) {
	list := cfg.PolicyKeys
	if list == "" {
		list = filepath.Join(cfg.StateDir, stokehold.PolicyTrustFile)
	}
	// The quorum is what the signature is for: one trusted signature is enough here.
	trust, err := bundle.TrustFile(list)()
	if err != nil {
		return nil, fmt.Errorf("whose bundle it is cannot be told: %w", err)
	}
	b, err := openBundle(file, trust.Single())
	if err != nil {
		return nil, err
	}
	return b.CoSign(key)
}

// onlyBundle reports whether the paths are one file with a bundle.
func onlyBundle(pos []string) (string, bool) {
	return pos[0], len(pos) == 1 && strings.HasSuffix(pos[0], bundle.Suffix)
}

func openBundle(file string, trust *bundle.Trust) (*bundle.Bundle, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > bundle.MaxBytes {
		return nil, fmt.Errorf("%s: %w: %d bytes", file, bundle.ErrTooLarge, info.Size())
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(raw, trust)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

func (a *app) policyDiff() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff PATH...",
		Short: "Show how policies differ from those in force: policies, rules and fields, not lines",
		Args:  paths,
	}
	format := outputFlag(cmd)
	from := cmd.Flags().StringSlice("from", nil, "compare with these policy `files` instead; needs no server")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		opts, err := a.types()
		if err != nil {
			return err
		}
		var before *governance.PolicySet
		if len(*from) > 0 {
			if before, err = governance.LoadPaths(opts, *from...); err != nil {
				return a.sayFaults(err)
			}
		} else {
			desk, _, err := a.desk(cmd)
			if err != nil {
				return err
			}
			defer closing(cmd.Context(), &err, desk.Close)
			f, err := desk.InForce(cmd.Context())
			if err != nil {
				return err
			}
			opts = f.Options
			if before, err = governance.Load(opts, f.Sources...); err != nil {
				return a.sayFaults(err)
			}
		}
		after, err := governance.LoadPaths(opts, pos...)
		if err != nil {
			return a.sayFaults(err)
		}
		changes, err := governance.Diff(before, after)
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, append([]governance.Change{}, changes...))
		}
		a.sayChanges(changes)
		return nil
	}
	return cmd
}

// sayChanges prints a diff.
func (a *app) sayChanges(changes []governance.Change) {
	th := a.env.theme()
	if len(changes) == 0 {
		fmt.Fprintln(a.env.Out, "no difference")
	}
	for _, c := range changes {
		what := "the set"
		if c.Policy != "" {
			what = "policy " + c.Policy
		}
		if c.Part != "" {
			what += ", " + c.Part
		}
		if c.Field != "" {
			what += ", " + c.Field
		}
		switch c.Kind {
		case governance.Added:
			fmt.Fprintf(a.env.Out, "%s %s\n", th.Good.Render("+"), report.Clean(what))
		case governance.Removed:
			fmt.Fprintf(a.env.Out, "%s %s\n", th.Bad.Render("-"), report.Clean(what))
		default:
			fmt.Fprintf(a.env.Out, "%s %s\n", th.Warn.Render("~"), report.Clean(what))
			for _, side := range [][2]string{{"    was ", c.Before}, {"    is  ", c.After}} {
				if side[1] == "" {
					side[1] = "not there"
				}
				fmt.Fprintf(a.env.Out, "%s%s\n", th.Dim.Render(side[0]), report.Clean(side[1]))
			}
		}
	}
}

func (a *app) policyApply() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply PATH...",
		Short: "Sign policies as a bundle, show what changes, and put it in force everywhere",
		Long: `Apply reads policy files and directories, or one signed bundle (*` + bundle.Suffix + `), shows how
they differ from what is in force, and writes them to the deployment's store,
from which every process takes them over. The bundle replaces all policies, also
those of configuration files and of the program.

A version that is not later than the one in force is a roll-back and refused,
unless --force and --reason say that it is meant; the decision log has it on record.`,
		Example: `  stokehold policy apply policies/
  stokehold policy history 5 > five.bundle
  stokehold policy apply five.bundle --force --reason "6 denies every promotion"`,
		Args: paths,
	}
	format := outputFlag(cmd)
	var s signing
	s.flags(cmd)
	force := cmd.Flags().Bool("force", false, "allow a roll-back; needs --reason")
	dry := cmd.Flags().Bool("dry-run", false, "only show what would change")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		if *force && strings.TrimSpace(s.reason) == "" {
			return usagef("%s: --force without --reason: say why, it goes on record", cmd.CommandPath())
		}
		desk, cfg, err := a.desk(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, desk.Close)
		ap := applying{a: a, desk: desk, cfg: cfg, signing: &s, force: *force, pos: pos}
		if err := ap.prepare(cmd.Context()); err != nil {
			return err
		}
		if out != asJSON {
			a.sayChanges(ap.changes)
		}
		res := map[string]any{"changes": append([]governance.Change{}, ap.changes...), "applied": false}
		if !*dry && !ap.same {
			if err := ap.apply(cmd.Context()); err != nil {
				return err
			}
			res["applied"], res["version"], res["epoch"], res["revision"], res["digest"] = true, ap.next.Position.Version, ap.next.Position.Epoch, ap.revision, ap.next.Digest
		}
		switch {
		case out == asJSON:
			return writeJSON(a.env.Out, res)
		case ap.same:
			fmt.Fprintf(a.env.Out, "in force already, as version %s\n", ap.current.Position)
		case !*dry:
			fmt.Fprintf(a.env.Out, "applied version %s, signed by %s\n", ap.next.Position, strings.Join(ap.next.Signers, ", "))
		}
		return nil
	}
	return cmd
}

// applying is one run of policy apply.
type applying struct {
	a       *app
	desk    *stokehold.PolicyDesk
	cfg     config.Config
	signing *signing
	force   bool
	pos     []string

	current  *bundle.Bundle // nil: none, or what is there cannot be verified
	over     uint64         // the revision to replace
	changes  []governance.Change
	same     bool
	draft    bundle.Draft
	signed   *bundle.Bundle // as given; nil: to be made of the draft
	next     *bundle.Bundle
	revision uint64
}

// prepare finds out what is in force and what is to replace it.
func (p *applying) prepare(ctx context.Context) error {
	f, err := p.desk.InForce(ctx)
	if err != nil && (!p.force || f.Revision == 0) {
		return err
	}
	p.current, p.over = f.Bundle, f.Revision
	if err != nil { // forced over what cannot be verified: go on from the last that can
		if p.current, err = p.lastVerified(ctx); err != nil {
			return err
		}
	}
	after, err := p.read(f.Options)
	if err != nil {
		return err
	}
	before, err := governance.Load(f.Options, f.Sources...)
	if err != nil { // of a release with another language: then all of it is new
		before = nil
	}
	p.changes, err = governance.Diff(before, after)
	p.same = err == nil && f.Bundle != nil && len(p.changes) == 0 && p.signed == nil && p.signing.version == 0
	return err
}

func (p *applying) lastVerified(ctx context.Context) (*bundle.Bundle, error) {
	kept, err := p.desk.History(ctx)
	if err != nil {
		return nil, err
	}
	var last *bundle.Bundle
	for _, k := range kept {
		if k.Bundle != nil && (last == nil || k.Bundle.Position.Compare(last.Position) > 0) {
			last = k.Bundle
		}
	}
	return last, nil
}

// read loads what is to be applied.
func (p *applying) read(opts governance.Options) (*governance.PolicySet, error) {
	file, ok := onlyBundle(p.pos)
	if !ok {
		var set *governance.PolicySet
		var err error
		p.draft, set, err = p.a.draft(p.signing, opts, p.pos)
		return set, err
	}
	trust, err := p.desk.Trust()
	if err != nil {
		return nil, err
	}
	if p.signed, err = openBundle(file, trust); err != nil {
		return nil, err
	}
	set, err := governance.Load(p.signed.Options(opts.Types), p.signed.Sources()...)
	if err != nil {
		return nil, p.a.sayFaults(err)
	}
	p.draft = p.signed.Draft(opts.Types)
	return set, nil
}

// apply signs and writes.
func (p *applying) apply(ctx context.Context) error {
	if p.signed != nil && !p.force {
		p.next = p.signed
	} else if err := p.sign(); err != nil {
		return err
	}
	var err error
	p.revision, err = p.desk.Apply(ctx, p.next, p.over, p.force)
	return err
}

func (p *applying) sign() error {
	key, err := p.signing.open(p.cfg.StateDir)
	if err != nil {
		return err
	}
	version := p.signing.version
	if version == 0 && p.signed != nil {
		version = p.signed.Position.Version
	}
	if p.draft.Position, err = bundle.Place(p.current, version, p.force); err != nil {
		return err
	}
	p.draft.Created, p.draft.Author, p.draft.Reason = p.a.env.Now(), p.a.author(p.signing.author), p.signing.reason
	if p.draft.Reason == "" && p.current != nil && p.draft.Position.Epoch > 0 {
		p.draft.Reason = p.current.Reason // a bundle of an epoch says why that began
	}
	p.next, err = bundle.Create(p.draft, key)
	return err
}

func (a *app) policyHistory() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history [VERSION]",
		Short: "List the bundles that were applied, or print one as it was signed",
		Long: `History lists the bundles that the store keeps, the newest first. With a VERSION,
EPOCH/VERSION after roll-backs, it prints that bundle as it was signed.`,
		Args: args("[VERSION]"),
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		var want *bundle.Position
		if len(pos) > 0 {
			if want, err = parsePosition(pos[0]); err != nil {
				return err
			}
		}
		desk, _, err := a.desk(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, desk.Close)
		kept, err := desk.History(cmd.Context())
		if errors.Is(err, bundle.ErrNotFound) {
			if want == nil {
				err = nil
				fmt.Fprintln(a.env.Err, "stokehold: no bundle was ever applied: the configured files are in force")
			}
		}
		if err != nil {
			return err
		}
		if want != nil {
			for _, k := range kept {
				if k.Bundle != nil && k.Bundle.Position == *want {
					_, err := a.env.Out.Write(k.Bundle.Bytes())
					return err
				}
			}
			return fmt.Errorf("no bundle of version %s: 'stokehold policy history' lists them", want)
		}
		return a.sayHistory(kept, out)
	}
	return cmd
}

func parsePosition(s string) (*bundle.Position, error) {
	epoch, version, ok := strings.Cut(s, "/")
	if !ok {
		epoch, version = "0", s
	}
	e, errE := strconv.ParseUint(epoch, 10, 64)
	v, errV := strconv.ParseUint(version, 10, 64)
	if errE != nil || errV != nil || v == 0 {
		return nil, usagef("version %q: want a number such as 7, or EPOCH/VERSION", s)
	}
	return &bundle.Position{Epoch: e, Version: v}, nil
}

type historyEntry struct {
	Revision uint64    `json:"revision"`
	Stored   time.Time `json:"stored"`
	Epoch    uint64    `json:"epoch"`
	Version  uint64    `json:"version,omitempty"`
	Author   string    `json:"author,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Signers  []string  `json:"signers,omitempty"`
	Digest   string    `json:"digest,omitempty"`
	Error    string    `json:"error,omitempty"` // why it cannot be verified
}

func (a *app) sayHistory(kept []bundle.Kept, out string) error {
	th := a.env.theme()
	list := []historyEntry{}
	g := grid{head: []string{"VERSION", "APPLIED", "AUTHOR", "SIGNED BY", "DIGEST", "REASON"}}
	for i := len(kept) - 1; i >= 0; i-- {
		k := kept[i]
		e := historyEntry{Revision: k.Revision, Stored: k.Stored.UTC()}
		if b := k.Bundle; b != nil {
			e.Epoch, e.Version, e.Author, e.Reason, e.Signers, e.Digest = b.Position.Epoch, b.Position.Version, b.Author, b.Reason, b.Signers, b.Digest
			g.add(b.Position.String(), when(k.Stored, a.env.Now()), report.Clean(b.Author), strings.Join(b.Signers, ", "), report.Short(strings.TrimPrefix(b.Digest, "sha256:")), report.Clean(b.Reason))
		} else {
			e.Error = k.Err.Error()
			g.add("?", when(k.Stored, a.env.Now()), "", "", "", th.Bad.Render(report.Clean(k.Err.Error())))
		}
		list = append(list, e)
	}
	if out == asJSON {
		return writeJSON(a.env.Out, list)
	}
	if len(list) == 0 {
		return nil
	}
	return g.write(a.env)
}
