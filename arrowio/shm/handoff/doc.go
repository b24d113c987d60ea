// Package handoff is how processes hand each other slots of shared memory: packets
// over a SOCK_SEQPACKET Unix socket, with the descriptors of arenas passed along.
// Batch bodies never cross the socket.
//
// Packet, Conn and Fields are the layer that two protocols share: the one between
// a host and its child (package stages/worker) and the one here, between peers:
// independent processes of one user on one host. docs/HANDOFF.md specifies it.
//
//	server, err := handoff.Serve(handoff.ServerConfig{Host: host}) // in the owner of arenas
//	client, err := handoff.Dial(ctx, path, handoff.DialConfig{})   // in another process
//	lease, err := client.Lease(ctx, handle)
//	batch, err := lease.Batch() // in place; releases the lease when it is released
//
// Peers does the dialling: it is the arrowio.Resolver of shm:// locations, and
// finds the process that has an arena through the runtime directory. Look is for
// people: all shared memory of a host, claimed or not.
//
// # Whose memory it is, and until when
//
// A leased slot stays as it is until the lease is released, whatever becomes of
// the connection or the owner. The owner uses it again only when the lease was
// released, or the reader's end of the connection is closed, or its process is
// dead. So a Client's socket stays open until its last lease is released, even
// after Close or a loss, and a reader that is stopped while it holds leases is
// killed unless one side chose otherwise (KeepStopped). There is no state in which
// a reader must ask whether its batch is still good.
//
// # Concurrency
//
// A Server serves each connection in a goroutine of its own, which alone waits for
// its peer; one more goroutine pings and looks for the dead. A Client receives in
// whichever goroutine waits for an answer (Inbox), and has one that receives while
// nobody waits and one that watches for silence. Who receives does so in a system
// call that blocks, so a connection takes a thread, except with GOMAXPROCS=1;
// docs/decisions/0009 says why.
// Locks are taken in the order Server.mu, peer.mu, then those of package shm; and
// Client.mu before Inbox.mu before Conn.mu. Nothing that can wait for a peer is done
// under a lock but Conn's own.
package handoff
