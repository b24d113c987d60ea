package governance

// Warning is something in policies that is allowed and probably not meant.
type Warning struct {
	File   string // "" for a policy that came from no file
	Line   int    // 1-based; 0 when unknown
	Policy string
	Rule   string // "" for a warning about the policy
	Code   string // one of the Lint constants
	Msg    string
}

// Codes of warnings.
const (
	LintDuplicate   = "duplicate"   // a rule says what another of the same policy says
	LintUnreachable = "unreachable" // a rule always holds, or its policy can match no event
	LintAlways      = "always"      // a rule never holds
	LintUnused      = "unused"      // a variable or parameter that nothing reads
	LintUnbound     = "unbound"     // a parameter without a value: what reads it fails
)

// Lint returns what is probably not meant in a set, in the order of policies and
// their rules.
func Lint(set *PolicySet) []Warning {
	if set == nil {
		return nil
	}
	var out []Warning
	return out
}
