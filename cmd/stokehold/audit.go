package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
)

func (a *app) audit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Verify, prove and export the decisions of governance",
		Long: `Every decision is an entry of a Merkle log in JetStream, and signed checkpoints of
it are kept elsewhere. With them these commands tell whether anything was deleted,
cut off, edited, reordered or forked since, and prove single decisions to others.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{a.auditVerify(), a.auditProve(), a.auditExport(), a.auditCheckpoint(), a.auditSign()} {
		config.ServerFlags(c.Flags())
		cmd.AddCommand(c)
	}
	cmd.AddCommand(a.auditCheck(), a.auditKey())
	return cmd
}

// auditor connects to NATS and to the checkpoints.
func (a *app) auditor(cmd *cobra.Command) (*stokehold.Auditor, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	if err := reachNATS(cmd.Context(), cfg); err != nil {
		return nil, err
	}
	return a.platform.Audit(cmd.Context(), cfg)
}

// keyFlag registers --key and returns how to get the keys that are trusted.
func keyFlag(cmd *cobra.Command) func(fallback *proof.Keys) (*proof.Keys, error) {
	v := cmd.Flags().StringArray("key", nil, "trust this `key`: a public key (NAME+HASH+BASE64) or a file of them; repeatable")
	return func(fallback *proof.Keys) (*proof.Keys, error) {
		if len(*v) == 0 {
			if fallback == nil {
				return nil, usagef("%s: missing --key: whose checkpoints are to be trusted?", cmd.CommandPath())
			}
			return fallback, nil
		}
		var lines []string
		for _, k := range *v {
			if _, err := os.Stat(k); err != nil && strings.Count(k, "+") >= 2 {
				lines = append(lines, k)
				continue
			}
			keys, err := proof.ReadKeyFile(k)
			if err != nil {
				return nil, err
			}
			lines = append(lines, keys.Public()...)
		}
		keys, err := proof.ParseKeys([]byte(strings.Join(lines, "\n")))
		if err != nil {
			return nil, fmt.Errorf("--key: %w", err)
		}
		return keys, nil
	}
}

const maxNoteBytes = 64 << 10

func readNote(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxNoteBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if len(b) > maxNoteBytes {
		return nil, fmt.Errorf("checkpoint %s is larger than %d bytes", path, maxNoteBytes)
	}
	return b, nil
}

func (a *app) auditVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the decision log with its signed checkpoints",
		Long: `Verify recomputes the Merkle tree from the stream and holds it to every checkpoint.
It says what was deleted, cut off, edited, reordered, inserted or forked, and
where; then it exits with 1. Entries older than --retention may be gone.`,
		Example: `  stokehold audit verify --key audit.pub
  stokehold audit verify --resume verified.txt --checkpoint printed-in-march.txt`,
		Args: args(),
	}
	keys := keyFlag(cmd)
	format := outputFlag(cmd)
	resume := cmd.Flags().String("resume", "", "go on from the checkpoint in this `file`, if it exists, and write the newest one that holds there")
	witnessed := cmd.Flags().StringArray("checkpoint", nil, "a signed checkpoint in a `file`, kept elsewhere, that the log must extend; repeatable")
	retention := cmd.Flags().Duration("retention", audit.RetentionFloor, "how long decisions have to be there, a `duration`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		if *retention <= 0 {
			return usagef("%s: --retention %s: want more than 0", cmd.CommandPath(), *retention)
		}
		cfg := audit.VerifyConfig{Retention: *retention}
		for _, path := range *witnessed {
			note, err := readNote(path)
			if err != nil {
				return err
			}
			cfg.Witnessed = append(cfg.Witnessed, note)
		}
		if *resume != "" {
			if cfg.Resume, err = readNote(*resume); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		sys, err := a.auditor(cmd)
		if err != nil {
			return err
		}
		defer sys.Close()
		if cfg.Keys, err = keys(sys.Keys); err != nil {
			return err
		}
		cfg.Store = sys.Store
		res, err := sys.Log.Verify(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		if err := a.showVerified(res, out); err != nil {
			return err
		}
		if *resume != "" && res.Err() == nil && res.Last != nil {
			if err := writeWhole(*resume, res.Last.Signed); err != nil {
				return err
			}
		}
		return res.Err()
	}
	return cmd
}

func (a *app) showVerified(res *audit.Result, out string) error {
	if out == asJSON {
		doc := struct {
			*audit.Result
			Verified bool   `json:"verified"`
			Last     string `json:"last_checkpoint,omitempty"`
		}{Result: res, Verified: res.Err() == nil}
		if res.Last != nil {
			doc.Last = string(res.Last.Signed)
		}
		return writeJSON(a.env.Out, doc)
	}
	th := a.env.theme()
	for _, f := range res.Findings {
		fmt.Fprintf(a.env.Out, "%s %s\n", th.Bad.Render(fmt.Sprintf("%-10s", f.Kind)), report.Clean(f.Text))
	}
	if res.More > 0 {
		fmt.Fprintf(a.env.Out, "%s %d more\n", th.Bad.Render(fmt.Sprintf("%-10s", "and")), res.More)
	}
	for _, w := range res.Weaknesses {
		fmt.Fprintf(a.env.Out, "%s %s\n", th.Warn.Render(fmt.Sprintf("%-10s", "warning")), report.Clean(w))
	}
	word := th.Good.Render("verified")
	if res.Err() != nil {
		word = th.Bad.Render("NOT VERIFIED")
	}
	fmt.Fprintf(a.env.Out, "%s: %s entries in %s messages of %s, %s checkpoints; %s expired, %s uncertain, %s not under a checkpoint yet\n",
		word, report.Count(res.Entries), report.Count(int64(res.Messages)), res.Stream, report.Count(int64(res.Checkpoints)),
		report.Count(res.Expired), report.Count(res.Uncertain), report.Count(res.Pending))
	return nil
}

func (a *app) auditProve() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "prove ID",
		Short:   "Write a proof that a decision is in the log",
		Example: "  stokehold audit prove 4bf92f3577b34da6a3ce929d0e0e4736 --out proof.json",
		Args:    args("ID"),
	}
	keys := keyFlag(cmd)
	out := cmd.Flags().String("out", "", "write to this `file` instead of standard output")
	cmd.RunE = func(cmd *cobra.Command, pos []string) error {
		sys, err := a.auditor(cmd)
		if err != nil {
			return err
		}
		defer sys.Close()
		trusted, err := keys(sys.Keys)
		if err != nil {
			return err
		}
		p, err := sys.Log.Prove(cmd.Context(), pos[0], sys.Store, trusted)
		if err != nil {
			return err
		}
		doc, err := p.Marshal()
		if err != nil {
			return err
		}
		if *out != "" {
			return writeWhole(*out, doc)
		}
		_, err = a.env.Out.Write(doc)
		return err
	}
	return cmd
}

func (a *app) auditCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a proof that 'audit prove' wrote; needs no server",
		Args:  args("FILE"),
	}
	keys := keyFlag(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, pos []string) error {
		out, err := format()
		if err != nil {
			return err
		}
		trusted, err := keys(nil)
		if err != nil {
			return err
		}
		f, err := os.Open(pos[0])
		if err != nil {
			return fmt.Errorf("proof: %w", err)
		}
		doc, err := io.ReadAll(io.LimitReader(f, proof.MaxInclusionBytes+1))
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("proof: %w", err)
		}
		p, c, err := proof.CheckInclusion(doc, trusted)
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, struct {
				Entry  proof.Entry `json:"entry"`
				Index  int64       `json:"index"`
				Size   int64       `json:"size"`
				Signed time.Time   `json:"signed"`
				Origin string      `json:"origin"`
			}{p.Entry, p.Index, c.Size, c.Time, c.Origin})
		}
		th := a.env.theme()
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(a.env.Out, "%s %s\n", th.Dim.Render(fmt.Sprintf("%-9s", name)), report.Clean(value))
			}
		}
		e := p.Entry
		row("proven", fmt.Sprintf("entry %d of the %d of %s, signed at %s", p.Index, c.Size, c.Origin, c.Time.Format(time.RFC3339)))
		row("decision", e.ID)
		row("made", fmt.Sprintf("%s on %s", e.Time.Format(time.RFC3339Nano), e.Point))
		row("action", e.Action)
		row("rule", strings.Join(notEmpty(e.Policy, e.Rule), "/"))
		row("reason", strings.Join(notEmpty(e.Code, e.Reason), ": "))
		row("event", strings.Join(notEmpty(e.Type, e.Subject, e.EventID), " "))
		row("run", strings.Join(notEmpty(e.Pipeline, e.Run), " "))
		return nil
	}
	return cmd
}

func (a *app) auditExport() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Write decisions as OpenLineage events, JSON lines or CSV",
		Example: "  stokehold audit export --format csv --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z > january.csv",
		Args:    args(),
	}
	format := cmd.Flags().String("format", string(audit.JSONL), "`format`: openlineage, jsonl or csv")
	since := cmd.Flags().String("since", "", "only decisions made not before this `time`: a duration (24h) or RFC 3339")
	until := cmd.Flags().String("until", "", "only decisions made before this `time`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := audit.ExportConfig{Format: audit.Format(*format)}
		var err error
		if cfg.Since, err = parseSince(*since, a.env.Now()); err != nil {
			return usagef("%s: --since: %w", cmd.CommandPath(), err)
		}
		if cfg.Until, err = parseSince(*until, a.env.Now()); err != nil {
			return usagef("%s: --until: %w", cmd.CommandPath(), err)
		}
		known := false
		for _, f := range audit.Formats() {
			known = known || f == cfg.Format
		}
		if !known {
			return usagef("%s: --format %q: want openlineage, jsonl or csv", cmd.CommandPath(), *format)
		}
		sys, err := a.auditor(cmd)
		if err != nil {
			return err
		}
		defer sys.Close()
		_, err = sys.Log.Export(cmd.Context(), a.env.Out, cfg)
		return err
	}
	return cmd
}

func (a *app) auditCheckpoint() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the newest signed checkpoint, to keep or to publish",
		Args:  args(),
	}
	keys := keyFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		sys, err := a.auditor(cmd)
		if err != nil {
			return err
		}
		defer sys.Close()
		trusted, err := keys(sys.Keys)
		if err != nil {
			return err
		}
		rec, err := audit.Latest(cmd.Context(), sys.Store, trusted)
		if err != nil {
			return err
		}
		if rec == nil {
			return errors.New("there is no checkpoint yet: 'stokehold audit sign' makes one")
		}
		_, err = a.env.Out.Write(rec.Signed)
		return err
	}
	return cmd
}

func (a *app) auditSign() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign a checkpoint of what none covers yet",
		Long: `Sign reads what is new in the decision log, checks that it extends the last
checkpoint, and stores a new one. With --follow it goes on: run it so as a service
of its own, with the key and the credential of the checkpoint store that the
processes of the pipelines do not have.`,
		Args: args(),
	}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on until interrupted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		sys, err := a.auditor(cmd)
		if err != nil {
			return err
		}
		defer sys.Close()
		told := func(r *proof.Record) {
			fmt.Fprintf(a.env.Out, "%s signed %s entries, up to message %d, root %s\n", r.Time.Format(time.RFC3339), report.Count(r.Size), r.Sequence, r.Root)
		}
		seq, err := sys.Sequencer(func(c *audit.SequencerConfig) { c.OnCheckpoint = told })
		if err != nil {
			return err
		}
		if !*follow {
			_, err := seq.Advance(cmd.Context(), true)
			return err
		}
		seq.Start()
		select {
		case <-cmd.Context().Done():
		case <-seq.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), closeTimeout)
		defer cancel()
		return errors.Join(seq.Stop(stop), seq.Err())
	}
	return cmd
}

func (a *app) auditKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Show the public keys of the checkpoints, make or rotate the private one",
		Long: `Key prints the public keys, for those who verify. To rotate: 'key --rotate' adds a
key, and from then on both sign; give the new public key to those who verify; then
'key --retire' lets only the new one sign. The old public key stays in the file.`,
		Args: args(),
	}
	rotate := cmd.Flags().Bool("rotate", false, "add a new key that signs beside the present one")
	retire := cmd.Flags().Bool("retire", false, "let only the newest key sign")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *rotate && *retire {
			return usagef("%s: --rotate and --retire are two steps: those who verify come between", cmd.CommandPath())
		}
		cfg, err := a.load(cmd)
		if err != nil {
			return err
		}
		path, origin := stokehold.CheckpointKeyFile(settings(cfg))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("key file: %w", err)
		}
		keys, err := proof.OpenKeyFile(path, origin)
		if err != nil {
			return err
		}
		switch {
		case *rotate:
			keys, err = keys.Rotate()
		case *retire:
			keys, err = keys.Retire()
		}
		if err == nil && (*rotate || *retire) {
			err = keys.WriteKeyFile(path)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.env.Out, strings.Join(keys.Public(), "\n"))
		return err
	}
	return cmd
}

// writeWhole replaces a file only once the new content is on disk.
func writeWhole(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".stokehold-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = io.Copy(f, bytes.NewReader(b))
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
