package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/workflows"
)

func (a *app) run() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run PIPELINE",
		Short: "Start a run of a pipeline",
		Example: `  stokehold run flights-train --param weeks=6 --wait
  stokehold run flights-train --params params.json`,
		Args: args("PIPELINE"),
	}
	format := outputFlag(cmd)
	params := cmd.Flags().StringArray("param", nil, "a parameter of the run, `KEY=VALUE`; VALUE is JSON or text; repeatable")
	file := cmd.Flags().String("params", "", "`file` with a JSON object of parameters; - reads standard input")
	key := cmd.Flags().String("key", "", "the run's `name`: starting it again is an error (default: made of the time)")
	seed := cmd.Flags().Uint64("seed", 1, "`number` that the run's randomness comes from")
	wait := cmd.Flags().Bool("wait", false, "wait until the run has ended; exit 1 if it fails")
	cmd.RunE = func(cmd *cobra.Command, pos []string) (err error) {
		out, err := format()
		if err != nil {
			return err
		}
		object, err := a.params(*params, *file)
		if err != nil {
			return err
		}
		sys, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer closing(cmd.Context(), &err, sys.Close)
		id, err := sys.Start(cmd.Context(), pos[0], workflows.RunInput{Run: *key, Params: object, Seed: *seed})
		if err != nil {
			return err
		}
		if !*wait {
			if out == asJSON {
				return writeJSON(a.env.Out, map[string]string{"id": id})
			}
			fmt.Fprintln(a.env.Out, id)
			return nil
		}
		if out != asJSON {
			fmt.Fprintln(a.env.Out, id)
		}
		res, err := sys.Wait(cmd.Context(), id)
		if err != nil {
			return err
		}
		if out == asJSON {
			return writeJSON(a.env.Out, res)
		}
		g := grid{head: []string{"STAGE", "BATCHES", "ROWS", "RESULT"}, right: []int{1, 2}}
		for _, s := range res.Stages {
			result := s.Result.Dataset
			if s.Result.Version != "" {
				result = s.Result.Model + " " + s.Result.Version[:min(8, len(s.Result.Version))]
			}
			if m := metrics(s.Result.Metrics); m != "" {
				result = strings.TrimSpace(result + "  " + m)
			}
			g.add(s.Stage, report.Count(s.Result.Data.BatchesOut), report.Count(s.Result.Rows), result)
		}
		return g.write(a.env)
	}
	return cmd
}

// params merges --param over --params into one JSON object; nil when there are none.
func (a *app) params(pairs []string, file string) (json.RawMessage, error) {
	object := map[string]json.RawMessage{}
	if file != "" {
		raw, err := a.read(file)
		if err != nil {
			return nil, fmt.Errorf("parameters: %w", err)
		}
		if err := json.Unmarshal(raw, &object); err != nil {
			return nil, fmt.Errorf("parameters: %s is not a JSON object: %w", file, err)
		}
	}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("--param %q: want KEY=VALUE", p)
		}
		raw := json.RawMessage(v)
		if !json.Valid(raw) {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("--param %s: %w", k, err)
			}
			raw = text
		}
		object[k] = raw
	}
	if len(object) == 0 {
		return nil, nil
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	return raw, nil
}

const maxParamsBytes = 64 << 10

func (a *app) read(file string) (_ []byte, err error) {
	in := a.env.In
	if file != "-" {
		f, openErr := os.Open(file)
		if openErr != nil {
			return nil, openErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxParamsBytes+1))
	if err == nil && len(raw) > maxParamsBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes: put it into a dataset", file, maxParamsBytes)
	}
	return raw, err
}
