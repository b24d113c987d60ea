package approval

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever is in the bucket: an approval has a quorum of distinct people with the
// role, none the requester and none late; a decision does not change by what comes
// after it; the order in which keys are listed does not matter.
func TestCountProperties(t *testing.T) {
	who, err := NewDirectory(
		Actor{Name: "ann", Roles: []string{"release"}}, Actor{Name: "bob", Roles: []string{"release"}}, Actor{Name: "cem", Roles: []string{"release", "ops"}},
		Actor{Name: "dee", Roles: []string{"ops"}}, Actor{Name: "fay"})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		r := Request{Roles: []string{"release"}, Quorum: rapid.IntRange(1, 3).Draw(t, "quorum"), Expires: Duration(time.Hour), Created: begin,
			Requester: rapid.SampledFrom([]string{"", "ann", "bob"}).Draw(t, "requester")}
		var votes []Vote
		for i := range rapid.IntRange(0, 8).Draw(t, "votes") {
			votes = append(votes, Vote{
				Actor:   rapid.SampledFrom([]string{"ann", "bob", "cem", "dee", "fay", "eve"}).Draw(t, "actor"),
				Approve: rapid.IntRange(0, 3).Draw(t, "approve") > 0, At: begin.Add(time.Duration(rapid.IntRange(0, 80).Draw(t, "minute")) * time.Minute),
				Reason: strconv.Itoa(i), revision: uint64(i + 1),
			})
		}
		now := begin.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "now")) * time.Minute)
		whole := count(&r, append([]Vote(nil), rapid.Permutation(votes).Draw(t, "listed")...), who, now, time.Minute)
		by := map[string]bool{}
		for _, v := range whole.Votes {
			a, known := who.Lookup(v.Actor)
			if !known || by[v.Actor] || v.Actor == r.Requester || a.Roles == nil || a.Roles[0] != "release" || !v.At.Before(r.Deadline()) {
				t.Fatalf("a vote counts that must not: %+v", v)
			}
			by[v.Actor] = true
		}
		if whole.State == Approved && (len(whole.By()) != r.Quorum || len(whole.Votes) != r.Quorum) {
			t.Fatalf("approved by %v of %d", whole.By(), r.Quorum)
		}
		if whole.State == Expired && !now.After(r.Deadline().Add(time.Minute)) {
			t.Fatal("expired within the skew")
		}
		for n := range len(votes) + 1 {
			part := count(&r, append([]Vote(nil), votes[:n]...), who, begin, time.Minute)
			if part.State != Pending && (part.State != whole.State || part.Reason != whole.Reason) {
				t.Fatalf("decided as %s (%s) and later as %s (%s)", part.State, part.Reason, whole.State, whole.Reason)
			}
		}
	})
}
