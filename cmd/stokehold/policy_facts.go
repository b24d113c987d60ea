package main

import (
	"context"
	"fmt"
	"io"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/governance"
)

// known is what can be had of the facts that decisions read.
type known struct {
	sources governance.Facts
	missing map[string]string // why a fact has no source, by its name; nil: none has
}

// factState is what is said of a fact that policies read.
type factState struct {
	Fact    string `json:"fact"`
	Missing string `json:"missing,omitempty"` // why only what the event says of it is known; "": it was asked for
}

// knownFacts asks a deployment; without one nothing is known but what events say.
func knownFacts(ctx context.Context, desk *stokehold.PolicyDesk) known {
	var k known
	if desk != nil {
		k.sources, k.missing = desk.Facts(ctx)
	}
	return k
}

func (k known) of(names []string) []factState {
	out := []factState{}
	for _, name := range names {
		s := factState{Fact: name, Missing: k.missing[name]}
		if k.missing == nil {
			s.Missing = "no deployment was asked: the policies and the event are from files"
		}
		out = append(out, s)
	}
	return out
}

// say tells where facts are from that policies read, one a line.
func (k known) say(w io.Writer, names []string) {
	if len(names) > 0 {
		fmt.Fprintln(w)
	}
	for _, s := range k.of(names) {
		if s.Missing == "" {
			fmt.Fprintf(w, "fact %s: as it is now, which may not be how it was when the event was judged\n", s.Fact)
		} else {
			fmt.Fprintf(w, "fact %s: not available, beyond what the event says of it: %s\n", s.Fact, report.Clean(s.Missing))
		}
	}
}
