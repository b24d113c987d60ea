// Package devstack runs everything Stokehold talks to, in one process and without Docker: a NATS server with
// JetStream, a Temporal server on SQLite with its web UI, and an S3 gateway on a local directory.
//
// It is meant for the demo, for `stokehold dev` and for integration tests. All listeners bind to 127.0.0.1.
// NATS and S3 demand credentials, which are made at the first start and kept with mode 0600 in the state
// directory. The Temporal server and its UI have no authentication: whoever may open a connection to the
// loopback interface may use them.
//
// # State
//
// One directory holds everything, so that a stack started again on it, after Close or after kill -9, finds its
// streams, workflows and objects:
//
//	DIR/lock              held (flock) while a process uses the directory; names its process id
//	DIR/credentials.json  NATS and S3 credentials, mode 0600
//	DIR/endpoints.json    addresses of the running stack; removed by Close
//	DIR/nats/             JetStream store
//	DIR/temporal/         SQLite database (write-ahead log)
//	DIR/s3/               one directory for each bucket
//	DIR/s3-meta/          object metadata where the file system has no user extended attributes
//	DIR/logs/             nats.log, temporal.log, ui.log, s3.log, each at most 2 x 8 MiB
//
// # What an acknowledgement means
//
// What NATS, Temporal or S3 acknowledged survives kill -9. It also survives a power cut as far as the disk keeps
// what it was told to flush: JetStream syncs every write, SQLite runs with synchronous=FULL, and the S3 backend
// syncs an object before it answers, which the gateway underneath does not do by itself.
//
// # Working directory
//
// The gateway's own file backend works relative to the process's working directory. The one in this package
// hands it absolute paths instead, so Start leaves the working directory alone.
package devstack
