package budget_test

import (
	"fmt"

	"github.com/stokehold/stokehold/governance/budget"
)

func ExampleParseDocument() {
	d, err := budget.ParseDocument([]byte(`
apiVersion: stokehold.dev/v1
kind: Budgets
currency: EUR
prices: {nvidia-h100: 0.0011}
teams: {late: [flights-train, flights-score]}
budgets:
  - {scope: team/late, window: month, money: 250}
  - {scope: run/*, acceleratorSeconds: 3600}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(d.Team("flights-train"), *d.Budgets[0].Money, d.Currency, "per", d.Budgets[0].Window)
	// Output: late 250 EUR per month
}
