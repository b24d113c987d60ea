package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// retention is how long closed workflows stay visible in the namespace of a development stack.
const retention = 30 * 24 * time.Hour

// internalPortTries bounds how often the server is started again because another program took one of the ports
// that were chosen for its internal services.
const internalPortTries = 3

// SearchAttributes are the custom search attributes a stack registers in its namespace.
func SearchAttributes() map[string]enums.IndexedValueType {
	return map[string]enums.IndexedValueType{
		"StokeholdPipeline": enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdRun":      enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdStage":    enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdTrigger":  enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdDataset":  enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdModel":    enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdWaiting":  enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokeholdBatches":  enums.INDEXED_VALUE_TYPE_INT,
	}
}

type temporalServer struct {
	srv     temporal.Server
	log     *logFile
	address string
	stopped chan struct{} // closed when the server has stopped
}

// startTemporal starts all four services of the Temporal server. The server has no way to give up a start half
// way: where ctx ends first, startTemporal waits for the start to finish and stops the server again.
func startTemporal(ctx context.Context, st *state, port int, tuning Tuning, fail func(error)) (*temporalServer, error) {
	file, err := openLog(st.path("logs", "temporal.log"))
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(st, tuning)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	for try := 1; ; try++ {
		t, err := tryTemporal(ctx, file, db, port, tuning, fail)
		if err == nil {
			if err = t.ready(ctx); err == nil {
				return t, nil
			}
			return nil, errors.Join(err, t.stop(context.WithoutCancel(ctx)))
		}
		if try == internalPortTries || ctx.Err() != nil || !errors.Is(err, errListen) {
			return nil, errors.Join(err, file.Close())
		}
	}
}

func tryTemporal(ctx context.Context, file *logFile, db *config.SQL, port int, tuning Tuning, fail func(error)) (*temporalServer, error) {
	ports, err := freePorts(ctx, 4)
	if err != nil {
		return nil, err
	}
	if port != 0 {
		ports[0] = port
	}
	cfg := serverConfig(db, ports, tuning)
	logger := newTemporalLogger(newLogger(file), fail)
	claims, err := authorization.GetClaimMapperFromConfig(&cfg.Global.Authorization, logger)
	if err != nil {
		return nil, fmt.Errorf("devstack: temporal: %w", err)
	}
	hosts := map[primitives.ServiceName]static.Hosts{}
	for i, name := range serviceNames() {
		hosts[name] = static.SingleLocalHost(net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])))
	}
	t := &temporalServer{log: file, stopped: make(chan struct{}), address: hosts[primitives.FrontendService].Self}
	// Both steps run on a goroutine of their own, since a fatal fault inside the server ends the one it occurs on.
	err = logger.guard(func() error {
		srv, err := temporal.NewServer(
			temporal.WithConfig(cfg),
			temporal.ForServices(temporal.DefaultServices),
			temporal.WithStaticHosts(hosts),
			temporal.WithLogger(logger),
			temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
			temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return claims }),
			temporal.WithDynamicConfigClient(dynamicConfig(tuning)),
		)
		if err != nil {
			return err
		}
		t.srv = srv
		return srv.Start()
	})
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if t.srv != nil {
			_ = logger.guard(t.srv.Stop)
		}
		return nil, fmt.Errorf("devstack: temporal did not start: %w", err)
	}
	logger.started()
	return t, nil
}

// serviceNames lists the services in the order of the ports they get.
func serviceNames() []primitives.ServiceName {
	return []primitives.ServiceName{
		primitives.FrontendService, primitives.HistoryService, primitives.MatchingService, primitives.WorkerService,
	}
}

func serverConfig(db *config.SQL, ports []int, tuning Tuning) *config.Config {
	const name = "active"
	frontend := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	shards := tuning.HistoryShards
	if shards == 0 {
		shards = historyShards
	}
	services := map[string]config.Service{}
	for i, service := range serviceNames() {
		services[string(service)] = config.Service{RPC: config.RPC{GRPCPort: ports[i], BindOnIP: "127.0.0.1"}}
	}
	return &config.Config{
		Persistence: config.Persistence{
			DefaultStore:     sqliteplugin.PluginName,
			VisibilityStore:  sqliteplugin.PluginName,
			NumHistoryShards: int32(shards),
			DataStores:       map[string]config.DataStore{sqliteplugin.PluginName: {SQL: db}},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        name,
			CurrentClusterName:       name,
			ClusterInformation: map[string]cluster.ClusterInformation{
				name: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: frontend},
			},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services:            services,
		PublicClient:        config.PublicClient{HostPort: frontend},
		Archival: config.Archival{
			History:    config.HistoryArchival{State: "disabled"},
			Visibility: config.VisibilityArchival{State: "disabled"},
		},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
			Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
		}},
	}
}

// opens makes the connection string of every opened database different. The server's SQLite plugin keeps
// connections for the life of the process under that string, so without it a stack on a directory that was
// removed and made again would write to the removed file.
var opens atomic.Int64 //nolint:gochecknoglobals // counts what the plugin keeps for the life of the process

// openDatabase gives the configuration of the database, after making it with its schema and namespace where it
// does not exist.
func openDatabase(st *state, tuning Tuning) (*config.SQL, error) {
	attributes := map[string]string{"mode": "rwc"}
	maps.Copy(attributes, sqlitePragmas(tuning))
	attributes["busy_timeout"] = strconv.FormatInt(busyTimeout.Milliseconds()+opens.Add(1), 10)
	db := &config.SQL{
		PluginName:        sqliteplugin.PluginName,
		DatabaseName:      st.path("temporal", "temporal.db"),
		ConnectAttributes: attributes,
		MaxConns:          tuning.connections(),
		MaxIdleConns:      tuning.connections(),
		// The plugin never closes its connections itself; this closes those of a stopped server.
		MaxConnLifetime: connectionLifetime,
	}
	// The schema is made under another name: a crash half way would otherwise leave a database that has a name
	// but not all tables.
	if _, err := os.Stat(db.DatabaseName); errors.Is(err, os.ErrNotExist) {
		if err := createDatabase(db); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, &StateError{Op: "read", Path: db.DatabaseName, Err: err}
	}
	return db, nil
}

func createDatabase(db *config.SQL) error {
	path := db.DatabaseName
	fresh := *db
	fresh.DatabaseName = path + ".new"
	fresh.MaxConns, fresh.MaxIdleConns = 1, 1
	// One file without a log beside it, which the rename below needs; it is synced as a whole afterwards.
	fresh.ConnectAttributes = maps.Clone(db.ConnectAttributes)
	fresh.ConnectAttributes["journal_mode"] = "off"
	fresh.ConnectAttributes["synchronous"] = "0"
	fresh.MaxConnLifetime = time.Millisecond
	if err := os.Remove(fresh.DatabaseName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &StateError{Op: "write", Path: fresh.DatabaseName, Err: err}
	}
	if err := sqlite.SetupSchema(&fresh); err != nil {
		return fmt.Errorf("devstack: temporal: cannot make the schema: %w", err)
	}
	ns, err := sqlite.NewNamespaceConfig("active", Namespace, false, SearchAttributes())
	if err != nil {
		return fmt.Errorf("devstack: temporal: cannot describe namespace %s: %w", Namespace, err)
	}
	ns.Detail.Config.Retention = durationpb.New(retention)
	if err := sqlite.CreateNamespaces(&fresh, ns); err != nil {
		return fmt.Errorf("devstack: temporal: cannot register namespace %s: %w", Namespace, err)
	}
	f, err := os.OpenFile(fresh.DatabaseName, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(fresh.DatabaseName, path)
	}
	if err != nil {
		return &StateError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func dynamicConfig(tuning Tuning) dynamicconfig.StaticClient {
	values := dynamicconfig.StaticClient{}
	settings := map[string]any{}
	if !tuning.Stock {
		settings = dynamicSettings()
	}
	maps.Copy(settings, quietSettings())
	maps.Copy(settings, tuning.Dynamic)
	for key, value := range settings {
		values[dynamicconfig.MakeKey(key)] = value
	}
	return values
}

// ready waits until the namespace can be used and registers the search attributes that an older database lacks.
// Where ctx ends first the error is ctx's cause, whatever the status that the interrupted call gave.
func (t *temporalServer) ready(ctx context.Context) error {
	err := t.awaitNamespace(ctx)
	if at, ok := ctx.Deadline(); ok && status.Code(err) == codes.DeadlineExceeded && time.Until(at) < time.Second {
		<-ctx.Done() // the server, which is told the deadline, was the first to see it pass
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("devstack: temporal is not ready: %w (%v)", context.Cause(ctx), err) //nolint:errorlint // the status of the interrupted call is told, but is not the error
	}
	return err
}

func (t *temporalServer) awaitNamespace(ctx context.Context) error {
	conn, err := grpc.NewClient("passthrough:///"+t.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("devstack: temporal: %w", err)
	}
	defer func() { _ = conn.Close() }()
	api := workflowservice.NewWorkflowServiceClient(conn)
	for {
		_, err = api.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: Namespace})
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
	op := operatorservice.NewOperatorServiceClient(conn)
	have, err := op.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: Namespace})
	if err != nil {
		return fmt.Errorf("devstack: temporal: cannot list search attributes: %w", err)
	}
	lacking := SearchAttributes()
	for name := range have.GetCustomAttributes() {
		delete(lacking, name)
	}
	if len(lacking) == 0 {
		return nil
	}
	if _, err := op.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{Namespace: Namespace, SearchAttributes: lacking}); err != nil {
		return fmt.Errorf("devstack: temporal: cannot register search attributes: %w", err)
	}
	return nil
}

// stop ends the services in order. The server can't be stopped harder than that: where ctx ends first, stop
// returns and leaves it to finish on its own.
func (t *temporalServer) stop(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		defer close(t.stopped)
		err := t.srv.Stop()
		done <- errors.Join(err, t.log.Close())
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("devstack: temporal is still stopping: %w", context.Cause(ctx))
	}
}
