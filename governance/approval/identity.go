package approval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// userInfoSubject is where a NATS server says as whom it knows a connection.
const userInfoSubject = "$SYS.REQ.USER.INFO"

// Whoami returns the name of the actor that conn acts for. claimed is the name
// that the person gives; "" asks the server alone. Where the directory knows the
// connection's credentials, they decide: another claimed name is ErrRole. Where it
// does not, because people share credentials, the claim is taken for what it is.
// "" and no error: nothing is claimed and the credentials are nobody's.
func Whoami(ctx context.Context, conn *nats.Conn, who *Directory, claimed string) (string, error) {
	if claimed != "" {
		if err := checkActor(claimed); err != nil {
			return "", fmt.Errorf("approval: %w: %w", ErrInvalid, err)
		}
	}
	if who.Len() == 0 {
		return claimed, nil // nobody to be taken for
	}
	user, err := natsUser(ctx, conn)
	if err != nil {
		return "", fmt.Errorf("approval: %w: the NATS server does not say who this connection is: %w", ErrUnavailable, err)
	}
	a, known := who.OfNATS(user)
	switch {
	case !known:
		return claimed, nil
	case claimed != "" && claimed != a.Name:
		return "", fmt.Errorf("approval: %w: the NATS credentials are %s's, not %s's", ErrRole, a.Name, claimed)
	}
	return a.Name, nil
}

// natsUser is the server's name for a connection: a user name, or the public key
// of an nkey or JWT user; "" where connections need no credentials.
func natsUser(ctx context.Context, conn *nats.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	msg, err := conn.RequestWithContext(ctx, userInfoSubject, nil)
	if err != nil {
		return "", err
	}
	var answer struct {
		Data struct {
			User string `json:"user"`
		} `json:"data"`
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return "", err
	}
	if answer.Error != nil {
		return "", errors.New(answer.Error.Description)
	}
	return answer.Data.User, nil
}
