package tiers

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// maxToken bounds an encoded name: it is a file name (255 bytes on Linux) and a
// part of a NATS subject.
const maxToken = 200

// token encodes a name as one token of a KV key, which is also a file name.
// Letters, digits and "-" stand for themselves, "/" becomes "_", every other byte
// "=" and two upper-case hexadecimal digits. No two names share a token.
//
// flights/schedule is flights_schedule, a_b is a=5Fb.
func token(kind, name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%w: %s is empty", ErrName, kind)
	}
	if len(name) > maxToken || !utf8.ValidString(name) {
		return "", fmt.Errorf("%w: %s %.40q: want UTF-8 of at most %d bytes", ErrName, kind, name, maxToken)
	}
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(name)+8)
	for _, r := range name {
		if unicode.IsControl(r) {
			return "", fmt.Errorf("%w: %s %.40q has a control character", ErrName, kind, name)
		}
	}
	for i := range len(name) {
		switch c := name[i]; {
		case plain(c):
			out = append(out, c)
		case c == '/':
			out = append(out, '_')
		default:
			out = append(out, '=', hex[c>>4], hex[c&15])
		}
	}
	if len(out) > maxToken {
		return "", fmt.Errorf("%w: %s %.40q has %d bytes when encoded, at most %d (letters, digits, - and / take one each)", ErrName, kind, name, len(out), maxToken)
	}
	return string(out), nil
}

// untoken is the inverse of token; it refuses what token does not produce.
func untoken(s string) (string, error) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case plain(c):
			out = append(out, c)
		case c == '_':
			out = append(out, '/')
		case c == '=' && i+2 < len(s):
			hi, ok1 := digit(s[i+1])
			lo, ok2 := digit(s[i+2])
			if !ok1 || !ok2 {
				return "", fmt.Errorf("%w: malformed token %.40q", ErrName, s)
			}
			out = append(out, hi<<4|lo)
			i += 2
		default:
			return "", fmt.Errorf("%w: malformed token %.40q", ErrName, s)
		}
	}
	again, err := token("token", string(out))
	if err != nil {
		return "", err
	}
	if again != s {
		return "", fmt.Errorf("%w: token %.40q is not the canonical spelling", ErrName, s)
	}
	return string(out), nil
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-'
}

func digit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// shardBatches is how many batches share a key prefix, so that a listing of a
// long dataset is a bounded number of keys at a time.
const shardBatches = 1024

// Keys of the catalog bucket:
//
//	head.DATASET                   headRecord, the dataset's state
//	batch.DATASET.SHARD.SEQUENCE   entry, where a batch is; only of the newest
//	block.DATASET.N                block, the entries of batches 256*N to 256*N+255
//	made.DATASET                   madeRecord, what the dataset was made of
//	base.DATASET.RUN.STAGE         partRecord, of writers that were displaced
//	move.DATASET.SHARD.SEQUENCE    moveRecord, a migration under way
//	pin.DATASET                    pinRecord, what may not be moved or removed
//	lease.DATASET.ID               leaseRecord, who reads what must stay
//	use.DATASET.GROUP              useRecord, when 64 blocks were read last
//	format                         formatRecord, how all this is encoded
func headKey(dataset string) string { return "head." + dataset }

func madeKey(dataset string) string { return "made." + dataset }

func batchKey(dataset string, seq uint64) string {
	return fmt.Sprintf("batch.%s.%d.%d", dataset, seq/shardBatches, seq)
}

func blockKey(dataset string, n uint64) string { return fmt.Sprintf("block.%s.%d", dataset, n) }

// shardFilter matches the keys of the batches of one shard.
func shardFilter(dataset string, shard uint64) string {
	return fmt.Sprintf("batch.%s.%d.*", dataset, shard)
}

func baseKey(dataset, run, stage string) string {
	return "base." + dataset + "." + run + "." + stage
}

func useKey(dataset string, group uint64) string { return fmt.Sprintf("use.%s.%d", dataset, group) }

func moveKey(dataset string, seq uint64) string {
	return fmt.Sprintf("move.%s.%d.%d", dataset, seq/shardBatches, seq)
}

// KeyToken encodes a name as one token of a KV key, for packages that keep their
// own buckets; see token. kind says in an error what the name is of. The error
// wraps ErrName.
func KeyToken(kind, name string) (string, error) { return token(kind, name) }
