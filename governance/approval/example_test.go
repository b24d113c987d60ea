package approval_test

import (
	"fmt"
	"strings"

	"github.com/stokehold/stokehold/governance/approval"
)

// Who has which role, by the name that the NATS server has for their credentials.
func ExampleParseDirectory() {
	d, err := approval.ParseDirectory([]byte(`
apiVersion: stokehold.dev/v1
kind: Actors
actors:
  - {name: ann, roles: [release-manager], nats: [UAH42UG]}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	a, known := d.OfNATS("UAH42UG")
	fmt.Println(a.Name, a.Roles, known)
	_, known = d.OfNATS("somebody")
	fmt.Println(known)
	// Output:
	// ann [release-manager] true
	// false
}

// What a person's NATS credentials must allow, and no more.
func ExampleVoterSubjects() {
	fmt.Println(strings.Join(approval.VoterSubjects("stokehold", "ann@example.org"), "\n"))
	// Output:
	// $JS.API.DIRECT.GET.KV_stokehold_approvals.>
	// $JS.API.STREAM.INFO.KV_stokehold_approvals
	// $KV.stokehold_approvals.vote.*.ann=40example=2Eorg
	// $SYS.REQ.USER.INFO
}
