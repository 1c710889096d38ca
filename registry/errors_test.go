package registry

import (
	"strings"
	"testing"
)

func TestParseError(t *testing.T) {
	e := ParseError(404, []byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"gone","detail":{"x":1}}]}`), CodeNameUnknown)
	if e.Status != 404 || e.Code != CodeBlobUnknown || e.Message != "gone" {
		t.Errorf("got %+v", e)
	}
	if again := ParseError(404, e.Body(), CodeNameUnknown); again.Code != e.Code || again.Message != e.Message {
		t.Errorf("Body and ParseError disagree: %+v", again)
	}
	for _, body := range []string{"", "<html>secret</html>", `{"errors":[]}`, `{"errors":[{}]}`, `"x"`} {
		if e := ParseError(403, []byte(body), CodeNameUnknown); e.Code != CodeDenied || e.Message != "Forbidden" {
			t.Errorf("body %q gives %+v", body, e)
		}
	}
	if e := ParseError(404, []byte("404 page not found"), CodeBlobUnknown); e.Code != CodeBlobUnknown {
		t.Errorf("a 404 without a code is %+v", e)
	}
	long := ParseError(500, []byte(`{"errors":[{"code":"X","message":"`+strings.Repeat("m", 4096)+`"}]}`), CodeNameUnknown)
	if len(long.Message) > 600 {
		t.Errorf("message of %d bytes", len(long.Message))
	}
}
