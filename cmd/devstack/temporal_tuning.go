package devstack

import (
	"maps"
	"time"
)

const (
	// historyShards of a new database. A shard is a unit of load spreading over hosts; on one host each costs
	// queues and memory.
	historyShards = 1
	busyTimeout   = 10 * time.Second
	// connectionLifetime bounds how long a connection to the database of a stopped server stays open.
	connectionLifetime = time.Minute
)

// quietSettings hold whatever the tuning: nothing that calls home.
func quietSettings() map[string]any {
	return map[string]any{"frontend.enableServerVersionCheck": false}
}

func dynamicSettings() map[string]any {
	return map[string]any{
		"history.transferProcessorMaxPollRPS":   10000,
		"history.timerProcessorMaxPollRPS":      10000,
		"history.visibilityProcessorMaxPollRPS": 100,
		"history.outboundProcessorMaxPollRPS":   10000,
		"history.longPollExpirationInterval":    time.Second,
		"matching.numTaskqueueReadPartitions":   1,
		"matching.numTaskqueueWritePartitions":  1,
		"history.hostLevelCacheMaxSize":         2048,
	}
}

func sqlitePragmas(tuning Tuning) map[string]string {
	p := map[string]string{"journal_mode": "wal", "synchronous": "2"}
	maps.Copy(p, tuning.Pragmas)
	return p
}

func sqliteConnections(tuning Tuning) int {
	switch {
	case tuning.Connections > 0:
		return tuning.Connections
	default:
		return 1
	}
}
