// Package benchtable is the form in which the project's benchmarks state their
// results: each case against a baseline of the same run.
package benchtable

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Row is one case. Ratio is above 1 where the project's value is the better one.
type Row struct {
	Case     string  `json:"case"`
	Unit     string  `json:"unit"`
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline"` // measured in the same run, or the target where a case states one
	Ratio    float64 `json:"ratio"`
}

// Write puts rows into a file as a JSON list, and makes its directory. Rows of
// another type than Row have the fields case, baseline and ratio too.
func Write[T any](path string, rows []T) error {
	raw, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("benchmark results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("benchmark results: %w", err)
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("benchmark results: %w", err)
	}
	return nil
}
