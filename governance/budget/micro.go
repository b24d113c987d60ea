package budget

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Micro is an amount in millionths: of a second, or of a unit of money. Sums are
// exact.
type Micro int64

// Price is money per accelerator-second, in billionths of a unit.
type Price int64

// ParseMicro reads a decimal of at most six places, e.g. "12.5".
func ParseMicro(s string) (Micro, error) {
	v, err := parseDecimal(s, 6)
	return Micro(v), err
}

// ParsePrice reads a decimal of at most nine places.
func ParsePrice(s string) (Price, error) {
	v, err := parseDecimal(s, 9)
	return Price(v), err
}

// Float is the amount in whole units, as close as a float64 comes.
func (m Micro) Float() float64 { return float64(m) / 1e6 }

func (m Micro) String() string { return formatDecimal(int64(m), 6) }
func (p Price) String() string { return formatDecimal(int64(p), 9) }

// MarshalJSON writes a number.
func (m Micro) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// MarshalJSON writes a number.
func (p Price) MarshalJSON() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalJSON reads a number or text without rounding it.
func (m *Micro) UnmarshalJSON(raw []byte) (err error) {
	*m, err = ParseMicro(strings.Trim(string(raw), `"`))
	return err
}

// UnmarshalJSON reads a number or text without rounding it.
func (p *Price) UnmarshalJSON(raw []byte) (err error) {
	*p, err = ParsePrice(strings.Trim(string(raw), `"`))
	return err
}

// UnmarshalYAML reads a number or text without rounding it.
func (m *Micro) UnmarshalYAML(n *yaml.Node) (err error) {
	if *m, err = ParseMicro(n.Value); err != nil {
		err = fmt.Errorf("line %d: %w", n.Line, err)
	}
	return err
}

// UnmarshalYAML reads a number or text without rounding it.
func (p *Price) UnmarshalYAML(n *yaml.Node) (err error) {
	if *p, err = ParsePrice(n.Value); err != nil {
		err = fmt.Errorf("line %d: %w", n.Line, err)
	}
	return err
}

// maxWhole bounds whole units, so that sums of millions of amounts stay in an int64.
const (
	maxWhole  = 1_000_000_000
	maxAmount = maxWhole * 1_000_000 // as a Micro
)

func parseDecimal(s string, places int) (int64, error) {
	whole, part, dotted := strings.Cut(s, ".")
	ok := whole != "" && len(whole) <= 10 && len(part) <= places && (!dotted || part != "")
	for _, r := range whole + part {
		ok = ok && r >= '0' && r <= '9'
	}
	if !ok {
		return 0, fmt.Errorf("%w: amount %.40q: want a decimal that is not negative, with at most %d places", ErrInvalid, s, places)
	}
	v, err := strconv.ParseInt(whole+part+strings.Repeat("0", places-len(part)), 10, 64)
	limit := int64(maxWhole)
	for range places {
		if limit > math.MaxInt64/10 {
			limit = math.MaxInt64
			break
		}
		limit *= 10
	}
	if err != nil || v > limit {
		return 0, fmt.Errorf("%w: amount %.40q: more than %d", ErrInvalid, s, maxWhole)
	}
	return v, nil
}

func formatDecimal(v int64, places int) string {
	sign := ""
	if v < 0 {
		sign, v = "-", -v
	}
	digits := strconv.FormatInt(v, 10)
	if pad := places + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	at := len(digits) - places
	part := strings.TrimRight(digits[at:], "0")
	if part == "" {
		return sign + digits[:at]
	}
	return sign + digits[:at] + "." + part
}

// cost is what a time costs, rounded down to a millionth, and at most what an amount may be.
func (p Price) cost(seconds Micro) Micro {
	if p <= 0 || seconds <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(p), uint64(seconds)) // 1e-15 units
	if hi >= 1e9 {
		return maxAmount
	}
	q, _ := bits.Div64(hi, lo, 1e9)
	return Micro(min(q, maxAmount))
}
