package deploy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/train"
)

// Source is where a Server finds models; *models.Registry is one.
type Source interface {
	Get(ctx context.Context, model, id string) (models.Version, error)
	Artifact(ctx context.Context, v models.Version) ([]byte, error)
	Alias(ctx context.Context, model, alias string) (models.Version, error)
	WatchAlias(ctx context.Context, model, alias string, fn func(models.Version)) error
}

// ServerConfig configures a Server. Zero values take the documented defaults.
type ServerConfig struct {
	Models   Source        // required
	Kinds    train.Kinds   // default train.Builtin()
	Address  string        // default "127.0.0.1:0": loopback, any free port
	Token    string        // clients must send "Authorization: Bearer TOKEN"; required beyond loopback
	MaxBytes int64         // of a request body; default 16 MiB
	MaxRows  int           // of a request; default 20,000
	Cached   int           // versions kept loaded; default 8
	Watched  int           // models whose champion is followed; default 64
	Timeout  time.Duration // to read a request or write an answer; default 30 s
	Logger   *slog.Logger
}

var errTooMany = errors.New("too many rows")

// Server answers the Open Inference Protocol, version 2, over HTTP with JSON.
// The model's name alone means its champion, which is followed as it changes;
// versions are named by id or by a unique prefix of at least 6 digits. Safe for
// concurrent use. Start once; Shutdown may be called at any time, again too.
type Server struct {
	cfg   ServerConfig
	http  *http.Server
	cache *cache
	token [sha256.Size]byte

	mu       sync.Mutex
	listener net.Listener
	stop     context.CancelFunc
	served   chan struct{} // closed when Serve has returned
	closed   bool
}

// NewServer checks cfg; nothing listens before Start.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Models == nil {
		return nil, errors.New("deploy: server has no Models")
	}
	if cfg.Kinds == nil {
		cfg.Kinds = train.Builtin()
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 16 << 20
	}
	if cfg.MaxRows == 0 {
		cfg.MaxRows = 20_000
	}
	if cfg.Cached == 0 {
		cfg.Cached = 8
	}
	if cfg.Watched == 0 {
		cfg.Watched = 64
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("deploy: address %q: %w: give HOST:PORT", cfg.Address, err)
	}
	if ip := net.ParseIP(host); cfg.Token == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("deploy: address %q is reachable from other machines: set a token, or listen on 127.0.0.1", cfg.Address)
	}
	s := &Server{cfg: cfg, served: make(chan struct{})}
	if cfg.Token != "" {
		s.token = sha256.Sum256([]byte(cfg.Token))
	}
	s.cache = newCache(cfg)
	s.http = &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: cfg.Timeout, WriteTimeout: cfg.Timeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// Start listens and serves until Shutdown.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("deploy: server was shut down")
	}
	if s.listener != nil {
		return errors.New("deploy: server was started before")
	}
	ctx, stop := context.WithCancel(context.Background())
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		stop()
		return fmt.Errorf("deploy: listen on %s: %w: choose another port, or 0 for any", s.cfg.Address, err)
	}
	s.listener, s.stop = l, stop
	s.cache.start(ctx)
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Logger.Error("model server stopped", "error", err)
		}
	}()
	return nil
}

// URL is the base of the server's addresses, e.g. "http://127.0.0.1:40000"; ""
// before Start.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return ""
	}
	return "http://" + s.listener.Addr().String()
}

// Shutdown stops listening, waits for running requests until ctx ends, then
// cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	started := s.listener != nil
	s.mu.Unlock()
	if !started {
		return nil
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.stop()
	<-s.served
	s.cache.wait()
	return err
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2", s.about)
	mux.HandleFunc("GET /v2/health/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]bool{"live": true})
	})
	mux.HandleFunc("GET /v2/health/ready", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]bool{"ready": true})
	})
	for _, at := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		mux.HandleFunc("GET "+at, s.describe)
		mux.HandleFunc("GET "+at+"/ready", s.ready)
		mux.HandleFunc("POST "+at+"/infer", s.infer)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Sprintf("no %s %s here: see /v2", r.Method, r.URL.Path))
	})
	return s.authorised(mux)
}

// authorised lets health checks pass: they tell nothing, and probes carry no token.
func (s *Server) authorised(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.Token != "" && !strings.HasPrefix(r.URL.Path, "/v2/health/") {
			have, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			sum := sha256.Sum256([]byte(have))
			if !ok || subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				fail(w, http.StatusUnauthorized, "no valid bearer token")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) about(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, serverMetadata{Name: "stokehold", Version: "2", Extensions: []string{}})
}

func (s *Server) describe(w http.ResponseWriter, r *http.Request) {
	m, ok := s.find(w, r)
	if !ok {
		return
	}
	answer(w, http.StatusOK, modelMetadata{
		Name: m.version.Model, Versions: []string{m.version.ID}, Platform: m.version.Kind,
		Inputs: []tensorMetadata{{Name: InputName, Datatype: FP32, Shape: []int64{-1, int64(len(m.features))},
			Parameters: map[string]string{"columns": strings.Join(m.features, ",")}}},
		Outputs: []tensorMetadata{{Name: OutputName, Datatype: FP32, Shape: []int64{-1}}},
	})
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if m, ok := s.find(w, r); ok {
		answer(w, http.StatusOK, map[string]any{"name": m.version.Model, "ready": true})
	}
}

func (s *Server) infer(w http.ResponseWriter, r *http.Request) {
	m, ok := s.find(w, r)
	if !ok {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.cfg.MaxBytes))
	if err != nil {
		var over *http.MaxBytesError
		if errors.As(err, &over) {
			fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("body of more than %d bytes: send fewer rows at once", s.cfg.MaxBytes))
			return
		}
		fail(w, http.StatusBadRequest, "body was cut off: "+err.Error())
		return
	}
	var req inferRequest
	if err := json.Unmarshal(body, &req); err != nil {
		fail(w, http.StatusBadRequest, "body is not an inference request: "+err.Error())
		return
	}
	if len(req.Inputs) != 1 || req.Inputs[0].Name != InputName {
		fail(w, http.StatusBadRequest, fmt.Sprintf("want exactly one input, named %q, have %d", InputName, len(req.Inputs)))
		return
	}
	for _, o := range req.Outputs {
		if o.Name != OutputName {
			fail(w, http.StatusBadRequest, fmt.Sprintf("no output %.60q, only %q", o.Name, OutputName))
			return
		}
	}
	in := &req.Inputs[0]
	rows, err := in.rows(len(m.features), s.cfg.MaxRows)
	if err != nil {
		code := http.StatusBadRequest
		if errors.Is(err, errTooMany) {
			code = http.StatusRequestEntityTooLarge
		}
		fail(w, code, err.Error())
		return
	}
	p, err := m.predictor.Predict(in.Data)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	answer(w, http.StatusOK, inferResponse{
		ModelName: m.version.Model, ModelVersion: m.version.ID, ID: req.ID,
		Outputs: []inferTensor{{Name: OutputName, Shape: []int64{int64(rows)}, Datatype: FP32, Data: p}},
	})
}

// find loads the version that the request's path names, or answers why not.
func (s *Server) find(w http.ResponseWriter, r *http.Request) (*loaded, bool) {
	m, err := s.cache.get(r.Context(), r.PathValue("model"), r.PathValue("version"))
	switch {
	case err == nil:
		return m, true
	case errors.Is(err, models.ErrNotFound):
		fail(w, http.StatusNotFound, fmt.Sprintf("no model %.60q, or no such version of it, or it has no champion", r.PathValue("model")))
	case r.Context().Err() != nil:
		fail(w, http.StatusServiceUnavailable, "the request was cut off")
	default:
		s.cfg.Logger.Error("model cannot be served", "model", r.PathValue("model"), "version", r.PathValue("version"), "error", err)
		fail(w, http.StatusServiceUnavailable, "the model cannot be loaded; the server's log says why")
	}
	return nil, false
}

func answer(w http.ResponseWriter, code int, v any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		fail(w, http.StatusInternalServerError, "the answer cannot be encoded: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// A failed write means that the client has gone: there is nobody to tell.
	_, _ = w.Write(b.Bytes())
}

func fail(w http.ResponseWriter, code int, message string) {
	answer(w, code, errorResponse{Error: message})
}
