package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/temporalio/ui-server/v2/server/api"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/cors"
	"github.com/temporalio/ui-server/v2/server/csrf"
	"github.com/temporalio/ui-server/v2/server/headers"
	"github.com/temporalio/ui-server/v2/server/route"
	"github.com/temporalio/ui-server/v2/ui"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// uiServer serves Temporal's web UI. It puts the UI server's parts together itself, for three reasons: its own
// Start ends the process when its listener fails, it never closes its connection to Temporal, and it answers to
// any host name, which lets a web page reach it through DNS rebinding.
type uiServer struct {
	http *http.Server
	conn *grpc.ClientConn
	log  *logFile
	url  string
}

func startUI(ctx context.Context, st *state, port int, temporalAddress string, fail func(error)) (_ *uiServer, err error) {
	listener, err := listen(ctx, "Temporal UI", port)
	if err != nil {
		return nil, err
	}
	port = listener.Addr().(*net.TCPAddr).Port
	u := &uiServer{url: "http://127.0.0.1:" + strconv.Itoa(port)}
	defer func() {
		if err != nil {
			err = errors.Join(err, listener.Close(), u.close())
		}
	}()
	if u.log, err = openLog(st.path("logs", "ui.log")); err != nil {
		return nil, err
	}
	u.conn, err = grpc.NewClient("passthrough:///"+temporalAddress,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(uiMaxMessageBytes)))
	if err != nil {
		return nil, fmt.Errorf("devstack: temporal ui: %w", err)
	}
	handler, err := uiHandler(u, port, temporalAddress)
	if err != nil {
		return nil, fmt.Errorf("devstack: temporal ui: %w", err)
	}
	u.http = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          log.New(u.log, "", log.LstdFlags|log.LUTC),
	}
	go func() {
		if err := u.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("devstack: temporal ui: %w", err))
		}
	}()
	return u, nil
}

// uiMaxMessageBytes bounds one answer of the Temporal server, as the UI's own connection does.
const uiMaxMessageBytes = 64 << 20

func uiHandler(u *uiServer, port int, temporalAddress string) (http.Handler, error) {
	provider, err := config.NewConfigProviderWithRefresh(&config.Config{
		TemporalGRPCAddress: temporalAddress,
		Host:                "127.0.0.1",
		Port:                port,
		EnableUI:            true,
		DefaultNamespace:    Namespace,
		DisableNewsFetch:    true,
		HideLogs:            true,
		// Plain HTTP on loopback: a browser would not send a cookie marked secure to it.
		CORS: config.CORS{AllowOrigins: []string{u.url}, CookieInsecure: true},
	})
	if err != nil {
		return nil, err
	}
	all, err := ui.Assets()
	if err != nil {
		return nil, err
	}
	assets, err := fs.Sub(all, "local")
	if err != nil {
		return nil, err
	}

	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.Logger.SetOutput(u.log)
	e.Use(onlyHosts(port), middleware.RecoverWithConfig(middleware.RecoverConfig{
		LogErrorFunc: func(_ echo.Context, err error, stack []byte) error {
			_, _ = fmt.Fprintf(u.log, "panic: %v\n%s\n", err, stack)
			return err
		},
	}), middleware.Gzip())
	e.Use(cors.CORSMiddleware(cors.CORSConfig{
		AllowHeaders: []string{
			echo.HeaderOrigin, echo.HeaderContentType, echo.HeaderAccept, echo.HeaderXCSRFToken, "Caller-Type",
		},
		AllowCredentials: true,
		ConfigProvider:   provider,
	}))
	e.Use(middleware.Secure())
	e.Use(csrf.EnsureTokenCookie(false))
	e.Use(middleware.CSRFWithConfig(csrf.MiddlewareConfig(provider, false)))
	route.SetHealthRoute(e)

	forward := []api.Middleware{headers.WithForwardHeaders([]string{"Caller-Type"})}
	g := e.Group("/api/v1")
	g.GET("/settings", api.GetSettings(provider))
	g.GET("/ui-extensions", api.GetUIExtensions(provider, api.TemporalAccessCheck(u.conn, forward)))
	g.GET(api.WorkflowRawHistoryUrl, api.WorkflowRawHistoryHandler(workflowservice.NewWorkflowServiceClient(u.conn)))
	g.Match([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, "/*",
		api.TemporalAPIHandler(provider, forward, u.conn))

	route.SetAuthRoutes(e, provider)
	if err := route.SetUIRoutes(e, "", assets, provider); err != nil {
		return nil, fmt.Errorf("devstack: ui: %w", err)
	}
	route.SetRenderRoute(e, "/")
	return e, nil
}

// onlyHosts refuses requests that name another host than the loopback address the UI listens on.
func onlyHosts(port int) echo.MiddlewareFunc {
	p := strconv.Itoa(port)
	allowed := map[string]bool{"127.0.0.1:" + p: true, "localhost:" + p: true}
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if !allowed[c.Request().Host] {
				return echo.NewHTTPError(http.StatusMisdirectedRequest, "unknown host: use http://127.0.0.1:"+p)
			}
			return next(c)
		}
	}
}

// stop lets requests finish until ctx ends, then cuts them off.
func (u *uiServer) stop(ctx context.Context) error {
	err := u.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("devstack: temporal ui cut off its requests: %w", err), u.http.Close())
	}
	return errors.Join(err, u.close())
}

func (u *uiServer) close() error {
	var errs []error
	if u.conn != nil {
		errs = append(errs, u.conn.Close())
	}
	if u.log != nil {
		errs = append(errs, u.log.Close())
	}
	return errors.Join(errs...)
}

var _ io.Writer = (*logFile)(nil)
