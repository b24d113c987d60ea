//go:build deps

// Command stokehold keeps the CLI's dependencies in go.mod until its commands import them.
package main

import (
	_ "charm.land/bubbletea/v2"
	_ "charm.land/lipgloss/v2"
	_ "github.com/guptarohit/asciigraph"
	_ "github.com/knadh/koanf/v2"
	_ "github.com/spf13/cobra"
)
