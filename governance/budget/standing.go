package budget

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Resources that a budget limits.
const (
	Money              = "money"
	AcceleratorSeconds = "accelerator-seconds"
	secondsOf          = "seconds:" // and the accelerator
)

// Balance is what one budget has of one resource in the current window.
type Balance struct {
	Scope    string    `json:"scope"`
	Window   Window    `json:"window"`
	Resource string    `json:"resource"` // Money, AcceleratorSeconds, or "seconds:" and an accelerator
	Spent    Micro     `json:"spent"`
	Limit    Micro     `json:"limit"`
	Currency string    `json:"currency,omitempty"` // of money
	Renews   time.Time `json:"renews,omitzero"`    // when the window ends; zero: it does not
	// Unpriced is an accelerator without a price, so that nobody can tell what is left.
	Unpriced string `json:"unpriced,omitempty"`
}

// Left is what may still be spent; never negative.
func (b Balance) Left() Micro { return max(0, b.Limit-b.Spent) }

func (b Balance) unit() string {
	if b.Resource == Money {
		return cmp.Or(b.Currency, Money)
	}
	if kind, ok := strings.CutPrefix(b.Resource, secondsOf); ok {
		return "seconds of " + kind
	}
	return b.Resource
}

// Standing is what a run may still spend, from every budget that it is under.
type Standing struct {
	Balances []Balance
	document *Document
}

// Exhausted returns an *ExhaustedError if a stage on this accelerator has nothing
// left to spend from one of the budgets. A budget that the accelerator does not
// draw on does not matter: what costs nothing goes on when the money is spent.
func (s Standing) Exhausted(accelerator string) error {
	for _, b := range s.Balances {
		rate, priced := s.rate(b, accelerator)
		if !priced {
			b.Unpriced = accelerator
			return &ExhaustedError{b}
		}
		if rate > 0 && b.Spent >= b.Limit {
			return &ExhaustedError{b}
		}
	}
	return nil
}

// Lasts is how long count accelerators can be used before a budget has nothing
// left; at most most.
func (s Standing) Lasts(accelerator string, count int, most time.Duration) time.Duration {
	for _, b := range s.Balances {
		rate, _ := s.rate(b, accelerator)
		if rate <= 0 || count <= 0 {
			continue
		}
		seconds := b.Left().Float() / (float64(rate) / 1e9 * float64(count))
		if seconds < most.Seconds() {
			most = time.Duration(seconds * float64(time.Second))
		}
	}
	return most
}

// rate is how much an accelerator takes of a balance each second, in billionths;
// false if that cannot be told.
func (s Standing) rate(b Balance, accelerator string) (Price, bool) {
	switch {
	case b.Resource == Money && s.document != nil:
		return s.document.price(accelerator)
	case b.Resource == AcceleratorSeconds && accelerator != CPU, b.Resource == secondsOf+accelerator:
		return 1e9, true
	}
	return 0, true
}

// amounts are sums by accelerator.
type amounts map[string]Use

// balances says what a budget has of everything that it limits.
func (d *Document) balances(b Budget, spent amounts, now time.Time) []Balance {
	base := Balance{Scope: b.Scope, Window: b.Window, Renews: d.renews(b.Window, now)}
	var out []Balance
	balance := func(resource string, limit Micro, of func(Use) Micro) {
		one := base
		one.Resource, one.Limit = resource, limit
		if resource == Money {
			one.Currency = d.Currency
		}
		for _, u := range spent {
			one.Spent = plus(one.Spent, of(u))
		}
		out = append(out, one)
	}
	if b.Money != nil {
		balance(Money, *b.Money, func(u Use) Micro { return u.Money })
	}
	if b.AcceleratorSeconds != nil {
		balance(AcceleratorSeconds, *b.AcceleratorSeconds, func(u Use) Micro {
			if u.Accelerator == CPU {
				return 0
			}
			return u.Seconds
		})
	}
	for _, kind := range slices.Sorted(maps.Keys(b.Seconds)) {
		balance(secondsOf+kind, b.Seconds[kind], func(u Use) Micro {
			if u.Accelerator != kind {
				return 0
			}
			return u.Seconds
		})
	}
	return out
}
