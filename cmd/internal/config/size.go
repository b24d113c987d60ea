package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// Size is a number of bytes, written as such or with KiB, MiB or GiB after it.
type Size int64

// UnmarshalText reads what String writes; the empty text is 0.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for suffix, bytes := range units() {
		if head, ok := strings.CutSuffix(number, suffix); ok {
			number, unit = strings.TrimSpace(head), bytes
			break
		}
	}
	if number == "" && unit == 1 {
		*s = 0
		return nil
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("size %q is not of the form 67108864, 65536KiB, 64MiB or 1GiB", text)
	}
	*s = Size(n * unit)
	return nil
}

func units() map[string]int64 {
	return map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
}

func (s Size) String() string {
	for _, suffix := range []string{"GiB", "MiB", "KiB"} {
		if unit := units()[suffix]; s != 0 && int64(s)%unit == 0 {
			return strconv.FormatInt(int64(s)/unit, 10) + suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// HugePages is shm.HugePages as "off", "advise" or "reserved".
type HugePages shm.HugePages

// UnmarshalText takes the three names; the empty text is "off".
func (h *HugePages) UnmarshalText(text []byte) error {
	switch string(text) {
	case "", "off":
		*h = HugePages(shm.NoHugePages)
	case "advise":
		*h = HugePages(shm.AdviseHugePages)
	case "reserved":
		*h = HugePages(shm.ReservedHugePages)
	default:
		return fmt.Errorf("huge pages %q are none of off, advise, reserved", text)
	}
	return nil
}
