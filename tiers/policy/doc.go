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
//	    high: 0.9
//	    low: 0.7
//
// Conditions are CEL, compiled by package governance: bounded, and the same
// everywhere for the same values. They read, all in whole numbers but for pressure:
//
//	age      seconds since the batch was committed
//	idle     seconds since it was last read (see tiers.BatchInfo), age if it never was
//	size     bytes of Arrow data
//	pressure bytes of the warm tier's batches over its quota; 0 without a quota
//	next     seconds until a run is expected to read it, -1 if none is known to
//	labels   list of strings, the dataset's
//	tiers    list of strings, where it has copies: "warm", "cold"
//	minute, hour, day
//
// The first rule of the first policy, in the order of files and rules, whose
// condition holds decides on a batch. A pin keeps it in the warm tier and a legal
// hold keeps it altogether, whatever a rule says. A condition that cannot be
// evaluated decides nothing about the batch, and is reported.
package policy
