package mirror

import (
	"testing"
	"time"
)

func FuzzExpiry(f *testing.F) {
	f.Add("Bearer a.eyJleHAiOjE3MDAwMDAwMDB9.b")
	f.Add("Bearer a.eyJleHAiOjFlMzAwfQ.b")
	f.Fuzz(func(t *testing.T, s string) {
		if at := expiry(s); !at.IsZero() && at.Before(time.Unix(1, 0)) {
			t.Fatalf("%q expires %v", s, at)
		}
	})
}

func FuzzAccept(f *testing.F) {
	f.Add("application/json;q=0.5, */*", "application/json")
	f.Fuzz(func(t *testing.T, accept, mediaType string) {
		if len(acceptKey([]string{accept})) > 1024 {
			t.Fatal("a long key")
		}
		takes([]string{accept}, mediaType)
	})
}
