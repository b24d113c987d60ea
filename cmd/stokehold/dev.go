package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/workflows"
)

func (a *app) dev() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Start the embedded NATS, Temporal and S3 with state in ./.stokehold",
		Long: `Dev starts NATS with JetStream, Temporal with its UI and an S3 gateway in this
process, on loopback, and hosts the example pipelines. What it keeps in its state
directory (streams, workflows, objects, models) survives a restart. The other
commands, run in the same directory, find it by themselves.`,
		Args: args(),
	}
	var ports devstack.Ports
	cmd.Flags().IntVar(&ports.NATS, "nats-port", devstack.DefaultNATSPort, "NATS `port`")
	cmd.Flags().IntVar(&ports.Temporal, "temporal-port", devstack.DefaultTemporalPort, "Temporal frontend `port`")
	cmd.Flags().IntVar(&ports.UI, "ui-port", devstack.DefaultUIPort, "Temporal UI `port`")
	cmd.Flags().IntVar(&ports.S3, "s3-port", devstack.DefaultS3Port, "S3 `port`")
	free := cmd.Flags().Bool("free-ports", false, "any free ports instead")
	config.QuotaFlags(cmd.Flags())
	seed := cmd.Flags().Uint64("seed", 1, "`number` that the pipelines' randomness comes from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		ctx := cmd.Context()
		// Its own servers are the only ones, so a running dev is of no interest.
		cfg, err := config.Load(config.Options{Flags: cmd.Flags(), Environ: a.env.Environ})
		if err != nil {
			return err
		}
		if *free {
			ports = devstack.Ports{}
		}
		began := a.env.Now()
		stack, err := starting(ctx, func() (*devstack.Stack, error) {
			return a.platform.Stack(ctx, devstack.Options{Dir: cfg.StateDir, Ports: ports, FreePorts: *free})
		})
		if err != nil {
			return err
		}
		defer closing(ctx, &err, stack.Close)
		sys, err := starting(ctx, func() (system, error) {
			return a.platform.Host(ctx, within(cfg, stack.Endpoints(), stack.Dir()), hosting{Seed: *seed})
		})
		if err != nil {
			return err
		}
		defer closing(ctx, &err, sys.Close)
		a.sayReady(stack, a.env.Now().Sub(began))
		select {
		case <-ctx.Done():
			fmt.Fprintln(a.env.Out, "stopping")
			return nil // being interrupted is how it ends
		case <-stack.Failed():
			return fmt.Errorf("the embedded stack failed: %w: look into %s/logs", stack.Err(), stack.Dir())
		}
	}
	return cmd
}

func (a *app) sayReady(stack *devstack.Stack, took time.Duration) {
	th := a.env.theme()
	fmt.Fprintf(a.env.Out, "%s is ready in %s, state in %s\n", th.Title.Render("stokehold dev"), seconds(took), stack.Dir())
	a.sayAddresses(stack.Endpoints())
	if defs, err := a.platform.Pipelines(); err == nil {
		var names []string
		for _, d := range defs {
			names = append(names, d.Name)
		}
		fmt.Fprintf(a.env.Out, "  %s %s\n", th.Dim.Render("pipelines   "), strings.Join(names, ", "))
	}
	fmt.Fprintf(a.env.Out, "%s\n", th.Dim.Render("Try 'stokehold events --follow' here in another terminal. Ctrl-C stops it."))
}

// runsPage is the UI's list of runs alone: the triggers' workflows are always
// there and would bury them.
func runsPage(e devstack.Endpoints) string {
	query := url.Values{"query": {`WorkflowType="` + workflows.PipelineWorkflow + `"`}}
	return e.UIURL + "/namespaces/" + e.Namespace + "/workflows?" + query.Encode()
}

func (a *app) sayAddresses(e devstack.Endpoints) {
	th := a.env.theme()
	for _, l := range [][2]string{
		{"Temporal UI ", runsPage(e)}, {"Temporal    ", e.TemporalAddress}, {"NATS        ", e.NATSURL},
		{"S3          ", e.S3Endpoint + ", bucket " + e.S3Bucket},
	} {
		fmt.Fprintf(a.env.Out, "  %s %s\n", th.Dim.Render(l[0]), l[1])
	}
}
