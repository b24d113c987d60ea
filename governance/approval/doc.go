// Package approval keeps what people are asked and what they answer.
//
// A rule with the action requireApproval gives an events.ApprovalNeed. The
// Coordinator records it as a Request; people vote; the first quorum, the first
// rejection or the expiry decides, and the Outcome is sealed for ever. Store is
// the engine's governance.Approvals: it knows sealed outcomes alone.
//
// # Who decides
//
// Requests, votes and outcomes are keys of one JetStream KV bucket, each created
// once by compare-and-set and never changed:
//
//	request.ID        written by the deployment, before anybody is asked
//	vote.ID.ACTOR     written by one person, with that person's own NATS credentials
//	outcome.ID        written by the deployment, which counted the votes
//
// A vote is only as trustworthy as the right to write its key. NATS grants that
// right: give each person credentials that may publish to VoterSubjects and to no
// other key, and nobody votes for another. Where people share credentials, as in the development stack, a name is
// a claim and not a proof. What a person may approve is not in the vote: whoever
// counts looks the actor up in the Directory of its own configuration, and an
// actor that is not there counts for nothing.
//
// Whether a vote was in time, and which vote came first, the server's clock and
// the bucket's revisions say; the clocks of voters say nothing.
package approval
