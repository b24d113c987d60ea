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
	if err := c.sendWithin(lastWait, k, job, payload, nil); err != nil {
		return fmt.Errorf("last words: %w", err)
	}
	return nil
}
