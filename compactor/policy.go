package compactor

import (
	"fmt"
	"strconv"
	"time"
)

// The two modes, under the names that etcd's --auto-compaction-mode gives them.
const (
	ModePeriodic = "periodic"
	ModeRevision = "revision"
)

// minPeriod keeps the sampling interval (a tenth of the period) far above the resolution of timers.
const minPeriod = 10 * time.Millisecond

// A Policy says which history may be forgotten. The zero Policy keeps everything.
type Policy struct {
	// Period is how long history is kept, for ModePeriodic. 0 otherwise.
	Period time.Duration
	// Keep is how many revisions behind the newest are kept, for ModeRevision. 0 otherwise.
	Keep int64
}

// Enabled reports whether the policy ever compacts.
func (p Policy) Enabled() bool { return p.Period > 0 || p.Keep > 0 }

// String says the policy in words, for logs.
func (p Policy) String() string {
	switch {
	case p.Period > 0:
		return fmt.Sprintf("keep %v of history", p.Period)
	case p.Keep > 0:
		return fmt.Sprintf("keep %d revisions", p.Keep)
	}
	return "keep all history"
}

// ParsePolicy reads etcd's pair of settings. In periodic mode the retention is a duration, or a bare number of
// hours; in revision mode it is a number of revisions. "" and "0" turn compaction off in either mode.
func ParsePolicy(mode, retention string) (Policy, error) {
	if mode != ModePeriodic && mode != ModeRevision {
		return Policy{}, fmt.Errorf("unknown auto-compaction-mode %q: want %q or %q", mode, ModePeriodic, ModeRevision)
	}
	if retention == "" {
		return Policy{}, nil
	}
	n, err := strconv.ParseInt(retention, 10, 64)
	switch {
	case err == nil && n < 0:
		return Policy{}, fmt.Errorf("auto-compaction-retention %q is negative", retention)
	case err == nil && mode == ModeRevision:
		return Policy{Keep: n}, nil
	case mode == ModeRevision:
		return Policy{}, fmt.Errorf("auto-compaction-retention %q: mode %q needs a number of revisions", retention, mode)
	case err == nil:
		const mostHours = int64(1<<63-1) / int64(time.Hour)
		if n > mostHours {
			return Policy{}, fmt.Errorf("auto-compaction-retention %q is more hours than a duration holds", retention)
		}
		return Policy{Period: time.Duration(n) * time.Hour}, nil
	}
	d, err := time.ParseDuration(retention)
	if err != nil {
		return Policy{}, fmt.Errorf("auto-compaction-retention %q: mode %q needs a duration such as 30m, or a number of hours", retention, mode)
	}
	if d != 0 && d < minPeriod {
		return Policy{}, fmt.Errorf("auto-compaction-retention %q is too short: the least is %v", retention, minPeriod)
	}
	return Policy{Period: d}, nil
}
