package registry

import (
	"strings"
	"testing"
)

func TestParseError(t *testing.T) {
	e := ParseError(404, []byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"gone","detail":{"x":1}}]}`))
	if e.Status != 404 || e.Code != CodeBlobUnknown || e.Message != "gone" {
		t.Errorf("got %+v", e)
	}
	if again := ParseError(404, e.Body()); again.Code != e.Code || again.Message != e.Message {
		t.Errorf("Body and ParseError disagree: %+v", again)
	}
	for _, body := range []string{"", "<html>secret</html>", `{"errors":[]}`, `{"errors":[{}]}`, `"x"`} {
		if e := ParseError(403, []byte(body)); e.Code != CodeDenied || e.Message != "Forbidden" {
			t.Errorf("body %q gives %+v", body, e)
		}
	}
	long := ParseError(500, []byte(`{"errors":[{"code":"X","message":"`+strings.Repeat("m", 4096)+`"}]}`))
	if len(long.Message) > 600 {
		t.Errorf("message of %d bytes", len(long.Message))
	}
}
