//go:build !race

package flights_test

const raceDetector = false
