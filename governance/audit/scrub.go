package audit

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// removed stands where a secret was.
const removed = "[secret removed]"

// secrets are what a reason must not hold and can be told by its form: private
// keys, tokens whose issuers give them a form, authorisation headers, and values
// that are called a secret.
var secrets = regexp.MustCompile(`(?is)` + strings.Join([]string{
	`-----BEGIN [A-Z ]*PRIVATE KEY-----.*`,
	`PRIVATE\+KEY\+\S+`,
	`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`,
	`\beyJ[0-9a-z_-]{8,}\.[0-9a-z_-]{4,}\.[0-9a-z_-]*`,
	`\b(?:gh[a-z]_|github_pat_|glpat-|xox[a-z]-|sk-)[0-9a-z_-]{12,}`,
	`\b(?:bearer|basic)\s+[0-9a-z+/_.=~-]{8,}`,
	`(?:password|passwd|passphrase|pwd|secret|token|credential|(?:api|access|private|signing|account)[ _-]?key)[0-9a-z_-]*["']?\s*(?:=>|[:=])\s*["']?[^\s"',;&)}\]]+`,
}, "|"))

// userinfo is the part of a URL that holds a password.
var userinfo = regexp.MustCompile(`://[^/?#\s@]*@`)

// scrub returns a reason without the secrets that it is seen to hold. It is the last
// line: what an event's data hold gets into a reason only by a messageExpression.
func scrub(s string) string {
	if s == "" {
		return s
	}
	return secrets.ReplaceAllLiteralString(scrubURL(s), removed)
}

// scrubURL returns an attribute without the credentials of URLs, and as UTF-8, as
// JSON and every other form that it is shown in later have it.
func scrubURL(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	if strings.IndexByte(s, '@') > 0 && strings.Contains(s, "://") {
		return userinfo.ReplaceAllLiteralString(s, "://"+removed+"@")
	}
	return s
}
