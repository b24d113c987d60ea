//go:build race

package governance_test

const raceEnabled = true
