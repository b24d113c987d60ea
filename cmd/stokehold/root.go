package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitDiffers = 3   // a command that compares found a difference
	exitKilled  = 130 // ended by a second interrupt, as shells say of SIGINT
)

// environment is what a command has of its process. Tests give their own.
type environment struct {
	In       io.Reader
	Keys     io.Reader // In when it is a terminal; nil otherwise
	Out, Err io.Writer
	Environ  []string
	Signals  <-chan os.Signal // interrupt and terminate
	Exit     func(code int)   // at once, without cleaning up
	Terminal bool             // Out is one
	Width    int              // of the terminal; 0: unknown
	Now      func() time.Time
}

// lookup returns a variable of the environment.
func (e *environment) lookup(name string) (string, bool) {
	for _, kv := range e.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// colour follows https://no-color.org: any value but the empty one means no.
func (e *environment) colour() bool {
	none, _ := e.lookup("NO_COLOR")
	term, _ := e.lookup("TERM")
	return e.Terminal && none == "" && term != "dumb"
}

// theme is for output that is printed once. Without asking the terminal, which
// would have to be waited for, a dark background is the better guess.
func (e *environment) theme() report.Theme {
	if !e.colour() {
		return report.Theme{}
	}
	return report.NewTheme(true)
}

func (e *environment) width() int {
	if e.Width <= 0 {
		return 100
	}
	return e.Width
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// differsError is what a command found that compares.
type differsError struct{ err error }

func (e *differsError) Error() string { return e.err.Error() }
func (e *differsError) Unwrap() error { return e.err }

// app is what all commands share.
type app struct {
	env      *environment
	platform platform
}

// run is main without its process.
func run(args []string, env *environment, p platform) int {
	ctx, stop := interruptible(env)
	defer stop()
	root := newRoot(&app{env: env, platform: p})
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	var differs *differsError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &differs):
		fmt.Fprintf(env.Err, "stokehold: %s\n", oneLine(err))
		return exitDiffers
	case errors.As(err, &usage):
		fmt.Fprintf(env.Err, "stokehold: %s\nRun 'stokehold help' for what there is.\n", strings.TrimPrefix(oneLine(err), "stokehold "))
		return exitUsage
	case errors.Is(err, errInterrupted) || ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(env.Err, "stokehold: interrupted")
		return exitKilled
	default:
		fmt.Fprintf(env.Err, "stokehold: %s\n", oneLine(err))
		return exitFailure
	}
}

// oneLine makes an error, which may join several, one line.
func oneLine(err error) string {
	var parts []string
	for l := range strings.Lines(err.Error()) {
		if l = strings.TrimSpace(report.Clean(l)); l != "" {
			parts = append(parts, l)
		}
	}
	return strings.Join(parts, "; ")
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "stokehold",
		Short: "Event-driven ML pipelines: from an event to a retrained, promoted model",
		Long: `Stokehold runs machine-learning pipelines that events start and rules govern.

  stokehold demo    the whole loop on real data, in a minute, on this machine
  stokehold dev     the embedded NATS, Temporal and S3, kept in ./.stokehold

The other commands look into a running dev, or any deployment given by flags,
environment (NATS_URL, TEMPORAL_ADDRESS, S3_ENDPOINT) or stokehold.yaml.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", near[0])
			}
			return usagef("unknown command %q%s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.env.Out)
	root.SetErr(a.env.Err)
	root.SetIn(a.env.In)
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// Without what the parser says to programmers.
		if bad := (*pflag.InvalidValueError)(nil); errors.As(err, &bad) {
			return usagef("%s: --%s %q: want %s", cmd.CommandPath(), bad.GetFlag().Name, bad.GetValue(), kindOf(bad.GetFlag().Value.Type()))
		}
		return usagef("%s: %w", cmd.CommandPath(), err)
	})
	config.Flags(root.PersistentFlags())
	root.AddCommand(a.demo(), a.dev(), a.pipelines(), a.policy(), a.shm(), a.audit(), a.data(), a.budget(), a.version())
	for _, c := range []*cobra.Command{a.run(), a.runs(), a.events(), a.models(), a.approvals(), a.vote(true), a.vote(false)} {
		config.ServerFlags(c.Flags())
		root.AddCommand(c)
	}
	return root
}

// kindOf says what a flag of a type of pflag's takes.
func kindOf(kind string) string {
	switch kind {
	case "int":
		return "a whole number"
	case "uint64":
		return "a whole number, not negative"
	case "bool":
		return "true or false"
	}
	return "a " + kind
}

// args checks the number of positional arguments; names are those of all of
// them, the last optional ones in brackets.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		need := 0
		for _, n := range names {
			if !strings.HasPrefix(n, "[") {
				need++
			}
		}
		if len(args) < need {
			return usagef("%s: missing %s", cmd.CommandPath(), names[len(args)])
		}
		if more := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "..."); len(args) > len(names) && !more {
			return usagef("%s: unexpected argument %q", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// load resolves the configuration of a command.
func (a *app) load(cmd *cobra.Command) (config.Config, error) {
	return config.Load(config.Options{Flags: cmd.Flags(), Environ: a.env.Environ, Discover: a.platform.Discover})
}

// connect is load plus the connection. Servers that nobody listens for are
// found out first, in one line each, instead of after every client's retries.
func (a *app) connect(cmd *cobra.Command) (system, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	if err := reach(cmd.Context(), cfg); err != nil {
		return nil, err
	}
	return a.platform.Connect(cmd.Context(), cfg)
}

// closeTimeout bounds a clean shutdown; then what is left is abandoned.
const closeTimeout = 15 * time.Second

// closing runs a shutdown with a deadline of its own, since the command's
// context may have ended already, and adds its error to *err.
func closing(ctx context.Context, err *error, shutdown func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	*err = errors.Join(*err, shutdown(ctx))
}
