package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Client asks a server of the Open Inference Protocol, version 2, for
// predictions. Zero values take the documented defaults. Safe for concurrent use.
type Client struct {
	URL      string        // base, e.g. "http://127.0.0.1:40000"
	Token    string        // sent as bearer token where set
	Chunk    int           // rows in one request; default 2,000
	Attempts int           // for each request; default 5
	Delay    time.Duration // before the second attempt, doubled each time; default 100 ms
	HTTP     *http.Client  // default: one with a timeout of 30 s
}

// RequestError is an answer other than 200.
type RequestError struct {
	URL     string
	Code    int
	Message string // the server's
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("deploy: %s answered %d: %s", e.URL, e.Code, e.Message)
}

// Temporary reports whether the same request may succeed later.
func (e *RequestError) Temporary() bool {
	return e.Code == http.StatusTooManyRequests || e.Code >= 500
}

// Predict returns the probability of each row of x, of shape (rows, width),
// row-major, as version of model says; version "" is the champion. All rows are
// answered by one version, which is returned.
func (c *Client) Predict(ctx context.Context, model, version string, x []float32, width int) (p []float32, served string, err error) {
	if width < 1 || len(x)%width != 0 || len(x) == 0 {
		return nil, "", fmt.Errorf("deploy: %d values are no whole number of rows of %d features", len(x), width)
	}
	chunk := c.Chunk
	if chunk <= 0 {
		chunk = 2000
	}
	rows := len(x) / width
	p = make([]float32, 0, rows)
	for at := 0; at < rows; at += chunk {
		n := min(chunk, rows-at)
		got, id, err := c.infer(ctx, model, version, x[at*width:(at+n)*width], n, width)
		if err != nil {
			return nil, "", err
		}
		p = append(p, got...)
		// The champion may change between two requests: the rest is asked of the
		// version that answered first.
		version = id
	}
	return p, version, nil
}

func (c *Client) infer(ctx context.Context, model, version string, x []float32, rows, width int) ([]float32, string, error) {
	body, err := json.Marshal(inferRequest{Inputs: []inferTensor{{
		Name: InputName, Datatype: FP32, Shape: []int64{int64(rows), int64(width)}, Data: x,
	}}})
	if err != nil {
		return nil, "", fmt.Errorf("deploy: encode request: %w", err)
	}
	to := c.URL + "/v2/models/" + url.PathEscape(model)
	if version != "" {
		to += "/versions/" + url.PathEscape(version)
	}
	to += "/infer"
	attempts, delay := c.Attempts, c.Delay
	if attempts <= 0 {
		attempts = 5
	}
	if delay <= 0 {
		delay = 100 * time.Millisecond
	}
	for try := 1; ; try++ {
		p, id, err := c.post(ctx, to, body, rows)
		var answered *RequestError
		if err == nil || ctx.Err() != nil || try == attempts || errors.As(err, &answered) && !answered.Temporary() {
			return p, id, err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, "", err
		case <-timer.C:
		}
		delay *= 2
	}
}

func (c *Client) post(ctx context.Context, to string, body []byte, rows int) ([]float32, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, "", fmt.Errorf("deploy: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = &http.Client{Timeout: 30 * time.Second}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("deploy: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end
	const largest = 64 << 20
	raw, err := io.ReadAll(io.LimitReader(resp.Body, largest))
	if err != nil {
		return nil, "", fmt.Errorf("deploy: answer of %s was cut off: %w", to, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e errorResponse
		if json.Unmarshal(raw, &e) != nil || e.Error == "" {
			e.Error = fmt.Sprintf("%.200q", raw)
		}
		return nil, "", &RequestError{URL: to, Code: resp.StatusCode, Message: e.Error}
	}
	var out inferResponse
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, "", fmt.Errorf("deploy: answer of %s: %w", to, err)
	}
	if len(out.Outputs) != 1 || len(out.Outputs[0].Data) != rows {
		return nil, "", fmt.Errorf("deploy: answer of %s has %d outputs, want one of %d values", to, len(out.Outputs), rows)
	}
	return out.Outputs[0].Data, out.ModelVersion, nil
}
