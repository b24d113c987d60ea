package shm

// Sole returns the handle of an adopted arena's only slot; ok is false for other
// arenas and once the slot is gone.
func (a *Arena) Sole() (h Handle, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.oneShot || a.slots[0] == nil {
		return Handle{}, false
	}
	return a.slots[0].handle, true
}

// Leased reports whether anyone holds a lease on a published slot. The answer
// may be old by the time it is used.
func (a *Arena) Leased(h Handle) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.find(h)
	return err == nil && s.leases > 0
}
