package devstack
import (
 _ "github.com/nats-io/nats-server/v2/server"
 _ "go.temporal.io/server/temporal"
 _ "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
 _ "github.com/temporalio/ui-server/v2/server"
 _ "github.com/versity/versitygw/embedgw"
 _ "github.com/versity/versitygw/backend/posix"
 _ "github.com/spf13/cobra"
 _ "github.com/knadh/koanf/v2"
 _ "charm.land/bubbletea/v2"
 _ "charm.land/lipgloss/v2"
 _ "github.com/guptarohit/asciigraph"
)
