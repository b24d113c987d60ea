//go:build race

package flights_test

// raceDetector: fits are ten times slower, so fewer weeks are run.
const raceDetector = true
