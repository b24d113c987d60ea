package view

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Options say where and how a view is shown.
type Options struct {
	In      io.Reader // keys; nil: none are read
	Out     io.Writer
	Environ []string // for the terminal's abilities
	Plain   bool     // lines instead of frames
	Colour  bool     // false: no colour, whatever the terminal can
	// Interrupt is called on the first ctrl+c or q, and once more, with the terminal
	// restored, on the second.
	Interrupt func()
	Clock     func() time.Time // nil: time.Now
}

// Show shows s and what msgs bring until msgs is closed or brings nil, or ctx ends. It owns Out
// until it returns, then the terminal is as it was, with the last frame left
// standing. Sends to msgs never wait long: everything there is drawn at once.
func Show(ctx context.Context, o Options, s State, msgs <-chan Msg) error {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Interrupt == nil {
		o.Interrupt = func() {}
	}
	if o.Plain {
		return lines(ctx, o, s, msgs)
	}
	opts := []tea.ProgramOption{tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out),
		tea.WithoutSignalHandler(), tea.WithFPS(30)}
	if o.Environ != nil {
		opts = append(opts, tea.WithEnvironment(o.Environ))
	}
	if s.Width > 0 {
		opts = append(opts, tea.WithWindowSize(s.Width, s.Height))
	}
	m := &program{o: o, s: s, msgs: msgs, look: NewLook(o.Colour, true)}
	_, err := tea.NewProgram(m, opts...).Run()
	if m.killed {
		o.Interrupt()
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, tea.ErrProgramKilled) {
		return fmt.Errorf("terminal view: %w", err)
	}
	return nil
}

func lines(ctx context.Context, o Options, s State, msgs <-chan Msg) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-msgs:
			if !ok || m == nil {
				return nil
			}
			s = Update(Update(s, Tick{o.Clock()}), m)
			if l := Line(s, m); l != "" {
				if _, err := fmt.Fprintln(o.Out, l); err != nil {
					return fmt.Errorf("plain view: %w", err)
				}
			}
		}
	}
}

// program adapts Update and Frame to Bubble Tea.
type program struct {
	o       Options
	s       State
	look    Look
	msgs    <-chan Msg
	pressed int
	killed  bool
	ending  bool // of next alone, which runs once at a time
}

type (
	several []Msg
	over    struct{}
	beat    struct{}
)

// maxDrain bounds what one redraw takes in, so that keys stay alive in a flood.
const maxDrain = 4096

func (p *program) Init() tea.Cmd {
	p.s = Update(p.s, Tick{p.o.Clock()})
	cmds := []tea.Cmd{p.next, tick()}
	if p.o.Colour && p.o.In != nil {
		cmds = append(cmds, tea.RequestBackgroundColor)
	}
	return tea.Batch(cmds...)
}

// next waits for a message and takes along those that came with it.
func (p *program) next() tea.Msg {
	if p.ending {
		return over{}
	}
	m, ok := <-p.msgs
	if !ok || m == nil {
		return over{}
	}
	batch := several{m}
	for len(batch) < maxDrain {
		select {
		case m, ok := <-p.msgs:
			if !ok || m == nil {
				p.ending = true // draw these first
				return batch
			}
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

func tick() tea.Cmd { return tea.Tick(100*time.Millisecond, func(time.Time) tea.Msg { return beat{} }) }

func (p *program) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case several:
		for _, m := range msg {
			p.s = Update(p.s, m)
		}
		return p, p.next
	case beat:
		p.s = Update(p.s, Tick{p.o.Clock()})
		return p, tick()
	case over:
		return p, tea.Quit
	case tea.WindowSizeMsg:
		p.s = Update(p.s, Resize{Width: msg.Width, Height: msg.Height})
	case tea.BackgroundColorMsg:
		p.look = NewLook(p.o.Colour, msg.IsDark())
	case tea.KeyPressMsg:
		switch msg.String() {
		case "ctrl+c", "q":
			if p.pressed++; p.pressed > 1 {
				p.killed = true
				return p, tea.Quit
			}
			p.s = Update(p.s, Stopping{})
			p.o.Interrupt()
		case "ctrl+z":
			return p, tea.Suspend
		}
	}
	return p, nil
}

func (p *program) View() tea.View {
	if p.s.Width == 0 {
		return tea.NewView("")
	}
	return tea.NewView(Frame(p.s, p.look) + "\n")
}
