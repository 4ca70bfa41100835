package lessor

import (
	"errors"
	"testing"
)

// TestTimeToLiveIsConfirmed: a leader that has been deposed without knowing does not
// tell what it remembers of a lease; another one may have renewed it.
func TestTimeToLiveIsConfirmed(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 60)
		deposed := errors.New("a later term")
		m.setFail(deposed)
		if _, _, err := m.l.TimeToLive(m.t.Context(), 1); !errors.Is(err, deposed) {
			t.Errorf("TimeToLive = %v, want %v", err, deposed)
		}
	})
}
