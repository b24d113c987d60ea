package devstack

import (
	"maps"
	"time"
)

const (
	// historyShards of a new database. A shard is a unit of load spreading over hosts; on one host each costs
	// queues and memory.
	historyShards = 1
	// sqliteConnections is one: writers exclude each other anyway, the server begins its transactions as readers
	// and upgrades them, and with more than one connection those upgrades wait for each other (measured: twice
	// the time for everything).
	sqliteConnections = 1
	busyTimeout       = 10 * time.Second
	// connectionLifetime bounds how long a connection to the database of a stopped server stays open.
	connectionLifetime = time.Minute
	// longPoll bounds how long a client waits for a notification that the server lost.
	longPoll = 500 * time.Millisecond
)

// quietSettings hold whatever the tuning: nothing that calls home.
func quietSettings() map[string]any {
	return map[string]any{"frontend.enableServerVersionCheck": false}
}

// dynamicSettings are the server's settings for one small host. docs/decisions/0004-temporal-latency.md has the
// measurements behind them.
func dynamicSettings() map[string]any {
	return map[string]any{
		// Each step of a workflow that is not eager is one read of the shard's transfer queue. The server allows 20
		// reads a second for each shard: a burst of 20, then one every 50 ms, which was the cost of a step.
		"history.transferProcessorMaxPollRPS": 10000,
		"history.timerProcessorMaxPollRPS":    10000,
		"history.outboundProcessorMaxPollRPS": 10000,
		// The search index may lag: reading its queue less often takes several changes with one read.
		"history.visibilityProcessorMaxPollRPS": 100,
		// With the default of four partitions a task and the worker's poll for it mostly arrive at different ones,
		// and are brought together by forwarding: more calls in one process, and twice the time for a step.
		"matching.numTaskqueueReadPartitions":  1,
		"matching.numTaskqueueWritePartitions": 1,
		// A client that waits for the end of a workflow is told through a channel of one element, and a notification
		// is dropped while that is full; the client then waits for the whole interval, 20 s by default.
		"history.longPollExpirationInterval": longPoll,
		// Entries, each a workflow's state: a development stack runs tens of workflows, not 128,000.
		"history.hostLevelCacheMaxSize": 2048,
	}
}

func sqlitePragmas(tuning Tuning) map[string]string {
	// synchronous=FULL (2) syncs the log at every commit: a trigger acknowledges its event once Temporal has
	// answered, so an answer must survive a power cut as JetStream's do.
	p := map[string]string{"journal_mode": "wal", "synchronous": "2"}
	maps.Copy(p, tuning.Pragmas)
	return p
}

func (t Tuning) connections() int {
	if t.Connections > 0 {
		return t.Connections
	}
	return sqliteConnections
}
