package handoff_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// TestSendNow reaches a peer that reads, and does not wait for one that does not.
func TestSendNow(t *testing.T) {
	ours, theirs, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	none := func(handoff.Kind) int { return 0 }
	var ends [2]*handoff.Conn
	for i, f := range []*os.File{ours, theirs} {
		if ends[i], err = handoff.NewConn(f, none); err != nil {
			t.Fatal(err)
		}
		defer ends[i].Close()
		f.Close()
	}
	a, b := ends[0], ends[1]
	if err := a.SendNow(7, 0, []byte("last")); err != nil {
		t.Fatal(err)
	}
	if p, err := b.Receive(); err != nil || p.Kind != 7 || string(p.Payload) != "last" {
		t.Fatal(p, err)
	}
	// The socket's buffer is full, then somebody waits for room in it.
	for err = nil; err == nil; err = a.SendNow(7, 0, make([]byte, 1000)) {
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() { blocked <- a.Send(8, 0, nil) }()
	for end := time.Now().Add(10 * time.Second); a.SendNow(7, 0, nil) == nil || !busy(a); {
		if time.Now().After(end) {
			t.Fatal("the other Send does not wait")
		}
	}
	b.Close()
	if err := <-blocked; err == nil {
		t.Error("sent to nobody")
	}
}

func busy(c *handoff.Conn) bool {
	err := c.SendNow(7, 0, nil)
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}
