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
//	next     seconds until a reader comes to it, estimated from where the readers are,
//	         in which order they read and how fast (see below); -1 if none is known to
//	labels   list of strings, the dataset's
//	tiers    list of strings, where it has copies: "warm", "cold"
//	minute, hour, day
//
// Readers announce what they come to (tiers.Store.Announce): the stages of a run, what
// the stages after them will read, and epochs, in their order. Until is the distance
// over the speed; 0 is now, or at a time that nobody knows. It is late by ten seconds,
// and by thirty more where a reader died. What a reader in sequence has passed is -1;
// one that reads epochs is taken to come back. A lease without more (tiers.Store.Lease)
// is a need now.
//
// Above a watermark what no reader comes to leaves first, in the policy's order, and
// then what is needed last. What a lease holds stays: of a reader in sequence that is
// what it comes to within thirty seconds, 32 to 512 batches.
//
// The first rule of the first policy, in the order of files and rules, whose
// condition holds decides on a batch. A pin keeps it in the warm tier and a legal
// hold keeps it altogether, whatever a rule says. A condition that cannot be
// evaluated decides nothing about the batch, and is reported. A batch expires only
// if the same rule would have said so two hours ago: a clock that is set forward by
// less ends nothing early.
package policy
