package stages

import "time"

// SetStuckAfter makes r find out sooner that a child waits for what cannot come.
func SetStuckAfter(r *Runtime, after time.Duration) { r.ahead.stuck = after }
