package handoff

import (
	"errors"
	"fmt"
	"time"
)

// lastWait is how long SendNow tries: long enough for a receiver that is reading.
const lastWait = 20 * time.Millisecond

// SendNow sends a message if that can be done nearly at once: last words to a
// peer that may have stopped reading. It gives up while another Send waits.
func (c *Conn) SendNow(k Kind, job uint32, payload []byte) error {
	if !c.mu.TryLock() {
		return errors.New("handoff: send now: the connection is busy")
	}
	defer c.mu.Unlock()
	var err error
	if c.out, err = Append(c.out[:0], k, job, payload); err != nil {
		return err
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(lastWait)); err != nil {
		return fmt.Errorf("handoff: send now: %w", err)
	}
	_, _, err = c.c.WriteMsgUnix(c.out, nil, nil)
	if c.SendTimeout == 0 {
		_ = c.c.SetWriteDeadline(time.Time{}) // closed: the next Send says so
	}
	if err != nil {
		return fmt.Errorf("handoff: send now: %w", err)
	}
	return nil
}
