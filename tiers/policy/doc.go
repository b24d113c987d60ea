// Package policy says by rules where batches belong: what moves to the cold tier,
// what leaves the warm one, what expires. A policy is a YAML document of the same
// family as governance's:
//
//	apiVersion: stokehold.dev/v1
//	kind: TierPolicy
//	metadata:
//	  name: flights
//	spec:
//	  match:
//	    datasets: ["flights/*"]
//	  rules:
//	    - name: old-goes-cold
//	      when: age > 7 * day && idle > day
//	      action: evict
//	    - name: ttl
//	      when: age > 365 * day
//	      action: expire
//	  watermarks:
//	    high: 0.9 # of the warm quota
//	    low: 0.7
//	    order: oldest # or idle, or largest: what leaves first
//	    hot: {high: 0.95, low: 0.8} # of the arena
//
// Conditions are CEL, compiled by package governance: bounded, and the same
// everywhere for the same values. They read, all in whole numbers but for pressure:
//
//	age      seconds since the batch was committed
//	idle     seconds since it was last read (see tiers.BatchInfo), age if it never was
//	size     bytes of Arrow data
//	pressure bytes in the warm directory of the host that asks, over its quota; 0
//	         without a quota
//	next     0 while a reader holds a lease on it (tiers.Store.Lease), which is to
//	         say that a stage reads it or is about to; -1 if none is known to
//	labels   list of strings, the dataset's
//	tiers    list of strings, where it has copies: "warm", "cold"
//	minute, hour, day
//
// The first rule of the first policy, in the order of files and rules, whose
// condition holds decides on a batch. A pin keeps it in the warm tier and a legal
// hold keeps it altogether, whatever a rule says. A condition that cannot be
// evaluated decides nothing about the batch, and is reported. A batch expires only
// if the same rule would have said so two hours ago: a clock that is set forward by
// less ends nothing early.
package policy
