package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	natsMaxMemoryBytes = 64 << 20
	// natsMaxStoreBytes is fixed: the server's own choice, a share of the free disk, refuses writes when a restart
	// finds less of it free.
	natsMaxStoreBytes = 16 << 30
	natsMaxConns      = 1024
)

type natsServer struct {
	srv *server.Server
	log *logFile
}

func startNATS(ctx context.Context, st *state, port int, fail func(error)) (*natsServer, error) {
	if port == 0 {
		port = server.RANDOM_PORT
	}
	file, err := openLog(st.path("logs", "nats.log"))
	if err != nil {
		return nil, err
	}
	fatal := make(chan error, 1)
	srv, err := server.NewServer(&server.Options{
		ServerName: "stokehold-dev",
		Host:       "127.0.0.1",
		Port:       port,
		Username:   st.cred.NATSUser,
		Password:   st.cred.NATSPassword,
		NoSigs:     true,
		MaxConn:    natsMaxConns,

		JetStream:          true,
		StoreDir:           st.path("nats"),
		SyncAlways:         true,
		JetStreamMaxMemory: natsMaxMemoryBytes,
		JetStreamMaxStore:  natsMaxStoreBytes,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("devstack: nats: %w", err), file.Close())
	}
	srv.SetLoggerV2(&natsLogger{log: newLogger(file), fatal: func(err error) {
		select {
		case fatal <- err:
		default:
		}
		fail(err)
	}}, false, false, false)

	n := &natsServer{srv: srv, log: file}
	go srv.Start()
	for !srv.ReadyForConnections(20 * time.Millisecond) {
		select {
		case err := <-fatal:
			return nil, errors.Join(err, n.stop(ctx))
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("devstack: nats did not start: %w", context.Cause(ctx)), n.stop(ctx))
		default:
		}
	}
	if !srv.JetStreamEnabled() {
		err := fmt.Errorf("devstack: nats started without JetStream: see %s", st.path("logs", "nats.log"))
		return nil, errors.Join(err, n.stop(ctx))
	}
	return n, nil
}

// stop never takes long: the server closes its connections and syncs its files.
func (n *natsServer) stop(context.Context) error {
	n.srv.Shutdown()
	n.srv.WaitForShutdown()
	return n.log.Close()
}

func (n *natsServer) url() string { return "nats://" + n.srv.Addr().String() }

type natsLogger struct {
	log   *slog.Logger
	fatal func(error)
}

func (l *natsLogger) Noticef(format string, v ...any) { l.log.Info(fmt.Sprintf(format, v...)) }
func (l *natsLogger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *natsLogger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *natsLogger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *natsLogger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }

// Fatalf reports instead of ending the process, which is what the server's own logger would do.
func (l *natsLogger) Fatalf(format string, v ...any) {
	err := fmt.Errorf("devstack: nats: "+format, v...)
	l.log.Error(err.Error())
	l.fatal(err)
}
