package compactor

import "testing"

// FuzzParsePolicy reads settings. A policy has one of its two forms, and none is negative or too short to be kept.
func FuzzParsePolicy(f *testing.F) {
	f.Add(ModePeriodic, "30m")
	f.Add(ModePeriodic, "9223372036854775807")
	f.Add(ModePeriodic, "-1ns")
	f.Add(ModeRevision, "1000")
	f.Add(ModeRevision, "1h")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, mode, retention string) {
		p, err := ParsePolicy(mode, retention)
		if err != nil {
			if p.Enabled() {
				t.Errorf("%q, %q: %v with %v", mode, retention, p, err)
			}
			return
		}
		if p.Period < 0 || p.Keep < 0 || p.Period > 0 && (p.Keep > 0 || p.Period < minPeriod || mode != ModePeriodic) || p.Keep > 0 && mode != ModeRevision {
			t.Errorf("%q, %q is %+v", mode, retention, p)
		}
	})
}
