package registry

import (
	"strings"
	"testing"
)

func FuzzParseUpstream(f *testing.F) {
	for _, s := range []string{"docker.io", "a.b=http://127.0.0.1:1", "docker.io=https://h/a/b/", "a.b=http://u:p@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUpstream(s)
		if err != nil {
			return
		}
		if u.Host != strings.ToLower(u.Host) || u.Endpoint.Hostname() == "" || u.Endpoint.User != nil || u.Endpoint.Scheme != "http" && u.Endpoint.Scheme != "https" {
			t.Fatalf("%q is %+v", s, u)
		}
	})
}

func FuzzParseError(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}`))
	f.Add(412, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := ParseError(status, body, CodeBlobUnknown)
		if e.Code == "" || len(e.Code) > 70 || len(e.Message) > 600 {
			t.Fatalf("%+v", e)
		}
		_ = e.Body()
	})
}
