package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/nodeinfo"
)

// Of a certificate that only the daemon has, the doctor goes by what the daemon
// says.
func TestIssuedCertificate(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		expires   int64
		connected bool
		mention   string
		trap      bool
	}{
		{0, false, "none yet", true},
		{now.Add(-time.Minute).Unix(), false, "has expired", true},
		{now.Add(time.Hour).Unix(), true, "node-1, until", false},
	} {
		e := &examination{Config: Config{Now: func() time.Time { return now }}, node: &nodeinfo.Node{
			Name: "node-1", Schedulers: []string{"scheduler.example.com:4402"}, Connected: c.connected,
			TLS: &nodeinfo.TLS{CA: "/nonexistent", Issuer: "https://scheduler.example.com:4405", Expires: c.expires},
		}}
		e.certificate()
		e.schedulers(t.Context())
		if len(e.checks) != 2 {
			t.Fatalf("%+v", e.checks)
		}
		for _, check := range e.checks {
			if (check.Status == Trap) != c.trap {
				t.Errorf("%d: %+v", c.expires, check)
			}
		}
		if !strings.Contains(e.checks[0].Text, c.mention) {
			t.Errorf("%d: %+v", c.expires, e.checks[0])
		}
	}
}
