package origin

import (
	"strings"
	"testing"
	"time"
)

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"abc","expires_in":300}`))
	f.Add([]byte(`{"access_token":"abc","expires_in":"60"}`))
	f.Add([]byte(`{"token":"a\nb","expires_in":1e300}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := parseToken(b)
		if err != nil {
			return
		}
		if tok.value == "" || strings.ContainsAny(tok.value, " \r\n\x00") {
			t.Fatalf("token %q", tok.value)
		}
		if life := time.Until(tok.until); life > maxTokenLife {
			t.Fatalf("it lives for %v", life)
		}
	})
}

func FuzzCheckListing(f *testing.F) {
	f.Add(false, []byte(`{"name":"x","tags":["a"]}`))
	f.Add(true, []byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Fuzz(func(t *testing.T, referrers bool, body []byte) {
		if checkListing(referrers, body) == nil && !strings.Contains(string(body), "s") {
			t.Fatalf("%q is a listing", body)
		}
	})
}
