package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/deploy"
	"github.com/stokehold/stokehold/stages/stagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, r *stagetest.Registry, cfg deploy.ServerConfig) *deploy.Server {
	t.Helper()
	cfg.Models = r
	s, err := deploy.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func ask(t *testing.T, method, url, body string, header ...string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s %s: %d %q is no JSON: %v", method, url, resp.StatusCode, raw, err)
	}
	return resp.StatusCode, out
}

func promote(t *testing.T, r *stagetest.Registry, v models.Version, previous string) {
	t.Helper()
	if err := r.Promote(t.Context(), models.Promotion{Model: model, Alias: models.Champion, ID: v.ID, Previous: previous}); err != nil {
		t.Fatal(err)
	}
}

const oneRow = `{"id":"7","inputs":[{"name":"features","datatype":"FP32","shape":[1,1],"data":[1]}]}`

func TestProtocol(t *testing.T) {
	r := stagetest.NewRegistry()
	v, other := weights(t, r, 1), weights(t, r, -1)
	promote(t, r, v, "")
	u := serve(t, r, deploy.ServerConfig{}).URL()

	for path, want := range map[string]string{
		"/v2": "name", "/v2/health/live": "live", "/v2/health/ready": "ready",
		"/v2/models/late": "inputs", "/v2/models/late/ready": "ready",
		"/v2/models/late/versions/" + other.ID: "outputs", "/v2/models/late/versions/" + other.ID[:12] + "/ready": "ready",
	} {
		if code, out := ask(t, "GET", u+path, ""); code != 200 || out[want] == nil {
			t.Errorf("GET %s: %d %v", path, code, out)
		}
	}
	probability := func(path string) (float64, any) {
		code, out := ask(t, "POST", u+path, oneRow)
		if code != 200 || out["id"] != "7" {
			t.Fatalf("POST %s: %d %v", path, code, out)
		}
		o := out["outputs"].([]any)[0].(map[string]any)
		if o["name"] != "probability" || o["datatype"] != "FP32" || fmt.Sprint(o["shape"]) != "[1]" {
			t.Errorf("output %v", o)
		}
		return o["data"].([]any)[0].(float64), out["model_version"]
	}
	if p, id := probability("/v2/models/late/infer"); math.Abs(p-0.7310586) > 1e-6 || id != v.ID {
		t.Errorf("champion: %v of %v", p, id)
	}
	if p, id := probability("/v2/models/late/versions/" + other.ID + "/infer"); math.Abs(p-0.2689414) > 1e-6 || id != other.ID {
		t.Errorf("version: %v of %v", p, id)
	}
}

func TestChampionIsFollowed(t *testing.T) {
	r := stagetest.NewRegistry()
	v, next := weights(t, r, 1), weights(t, r, 2)
	promote(t, r, v, "")
	u := serve(t, r, deploy.ServerConfig{}).URL()
	served := func() any {
		_, out := ask(t, "POST", u+"/v2/models/late/infer", oneRow)
		return out["model_version"]
	}
	if got := served(); got != v.ID {
		t.Fatalf("served %v", got)
	}
	promote(t, r, next, v.ID)
	deadline := time.Now().Add(5 * time.Second)
	for served() != next.ID {
		if time.Now().After(deadline) {
			t.Fatal("the new champion is not served")
		}
	}
}

func TestBadRequests(t *testing.T) {
	r := stagetest.NewRegistry()
	promote(t, r, weights(t, r, 1), "")
	u := serve(t, r, deploy.ServerConfig{MaxBytes: 2000, MaxRows: 3}).URL()
	infer := "/v2/models/late/infer"
	input := func(shape, typ, data string) string {
		return `{"inputs":[{"name":"features","datatype":"` + typ + `","shape":` + shape + `,"data":` + data + `}]}`
	}
	for name, c := range map[string]struct {
		method, path, body string
		code               int
	}{
		"no such model":   {"POST", "/v2/models/none/infer", oneRow, 404},
		"no such version": {"GET", "/v2/models/late/versions/0123456789ab", "", 404},
		"short prefix":    {"GET", "/v2/models/late/versions/0", "", 404},
		"no such path":    {"GET", "/v1", "", 404},
		"wrong method":    {"GET", infer, "", 404},
		"no JSON":         {"POST", infer, "{", 400},
		"no input":        {"POST", infer, `{}`, 400},
		"width":           {"POST", infer, input("[1,2]", "FP32", "[1,2]"), 400},
		"rows":            {"POST", infer, input("[2,1]", "FP32", "[1]"), 400},
		"negative":        {"POST", infer, input("[-1,1]", "FP32", "[1]"), 400},
		"type":            {"POST", infer, input("[1,1]", "INT64", "[1]"), 400},
		"text":            {"POST", infer, input("[1,1]", "FP32", `["1"]`), 400},
		"null":            {"POST", infer, input("[1,1]", "FP32", `[null]`), 400},
		"out of range":    {"POST", infer, input("[1,1]", "FP32", "[1e99]"), 400},
		"nested deep":     {"POST", infer, input("[1,1]", "FP32", strings.Repeat("[", 20)+"1"+strings.Repeat("]", 20)), 400},
		"many rows":       {"POST", infer, input("[4,1]", "FP32", "[1,2,3,4]"), 413},
		"many bytes":      {"POST", infer, input("[1,1]", "FP32", "["+strings.Repeat(" ", 3000)+"1]"), 413},
		"unknown output":  {"POST", infer, `{"inputs":[{"name":"features","datatype":"FP32","shape":[1,1],"data":[1]}],"outputs":[{"name":"x"}]}`, 400},
	} {
		code, out := ask(t, c.method, u+c.path, c.body)
		if message, _ := out["error"].(string); code != c.code || message == "" {
			t.Errorf("%s: %d %v, want %d and an error", name, code, out, c.code)
		}
	}
	if code, out := ask(t, "POST", u+infer, input("[2,1]", "FP32", "[[1],[2]]")); code != 200 {
		t.Errorf("nested data: %d %v", code, out)
	}
}

func TestToken(t *testing.T) {
	r := stagetest.NewRegistry()
	v := weights(t, r, 1)
	promote(t, r, v, "")
	s := serve(t, r, deploy.ServerConfig{Token: "secret"})
	for header, want := range map[string]int{"": 401, "Bearer wrong": 401, "secret": 401, "Bearer secret": 200} {
		if code, _ := ask(t, "GET", s.URL()+"/v2/models/late", "", "Authorization", header); code != want {
			t.Errorf("Authorization %q: %d, want %d", header, code, want)
		}
	}
	if code, _ := ask(t, "GET", s.URL()+"/v2/health/live", ""); code != 200 {
		t.Errorf("health check: %d", code)
	}
	c := deploy.Client{URL: s.URL(), Token: "secret", HTTP: http.DefaultClient, Chunk: 2}
	p, served, err := c.Predict(t.Context(), model, "", []float32{-1, 0, 1}, 1)
	if err != nil || len(p) != 3 || p[1] != 0.5 || served != v.ID {
		t.Errorf("%v of %s, %v", p, served, err)
	}
	c.Token = ""
	var e *deploy.RequestError
	if _, _, err := c.Predict(t.Context(), model, "", []float32{1}, 1); !errors.As(err, &e) || e.Code != 401 || e.Temporary() {
		t.Errorf("without token: %v", err)
	}
	if _, err := deploy.NewServer(deploy.ServerConfig{Models: r, Address: "0.0.0.0:0"}); err == nil {
		t.Error("a server that others can reach needs a token")
	}
}

func TestClientRetries(t *testing.T) {
	var calls atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) < 3 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, `{"model_version":"v","outputs":[{"name":"probability","datatype":"FP32","shape":[1],"data":[0.25]}]}`)
	}))
	defer s.Close()
	c := deploy.Client{URL: s.URL, Delay: time.Millisecond, HTTP: s.Client()}
	p, v, err := c.Predict(t.Context(), model, "", []float32{1}, 1)
	if err != nil || len(p) != 1 || p[0] != 0.25 || v != "v" || calls.Load() != 3 {
		t.Errorf("%v %v %v after %d calls", p, v, err, calls.Load())
	}
	if _, _, err := c.Predict(t.Context(), model, "", []float32{1, 2, 3}, 2); err == nil {
		t.Error("half a row was sent")
	}
}

func TestStartAndShutdown(t *testing.T) {
	r := stagetest.NewRegistry()
	s, err := deploy.NewServer(deploy.ServerConfig{Models: r})
	if err != nil {
		t.Fatal(err)
	}
	if s.URL() != "" {
		t.Error("a URL before Start")
	}
	if err := errors.Join(s.Start()); err != nil {
		t.Fatal(err)
	}
	if s.Start() == nil {
		t.Error("started twice")
	}
	for range 2 {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	unstarted, err := deploy.NewServer(deploy.ServerConfig{Models: r})
	if err != nil {
		t.Fatal(err)
	}
	if err := unstarted.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if unstarted.Start() == nil {
		t.Error("started after Shutdown")
	}
}

func TestFewVersionsStayLoaded(t *testing.T) {
	r := stagetest.NewRegistry()
	var all []models.Version
	for i := range 6 {
		all = append(all, weights(t, r, float64(i)))
	}
	u := serve(t, r, deploy.ServerConfig{Cached: 2}).URL()
	for range 3 {
		for i, v := range all {
			code, out := ask(t, "POST", u+"/v2/models/late/versions/"+v.ID+"/infer", oneRow)
			if code != 200 || out["model_version"] != v.ID {
				t.Fatalf("version %d: %d %v", i, code, out)
			}
		}
	}
}
