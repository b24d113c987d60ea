package stokehold
import (
 _ "github.com/ThreeDotsLabs/watermill/pubsub/tests"
 _ "github.com/nats-io/nats-server/v2/server"
 _ "pgregory.net/rapid"
 _ "go.uber.org/goleak"
)
