package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Codes of the OCI distribution specification, and TOOMANYREQUESTS and
// UNAVAILABLE, which registries use beside them.
const (
	CodeBlobUnknown     = "BLOB_UNKNOWN"
	CodeDenied          = "DENIED"
	CodeDigestInvalid   = "DIGEST_INVALID"
	CodeManifestInvalid = "MANIFEST_INVALID"
	CodeManifestUnknown = "MANIFEST_UNKNOWN"
	CodeNameInvalid     = "NAME_INVALID"
	CodeNameUnknown     = "NAME_UNKNOWN"
	CodeTooManyRequests = "TOOMANYREQUESTS"
	CodeUnauthorized    = "UNAUTHORIZED"
	CodeUnavailable     = "UNAVAILABLE"
	CodeUnsupported     = "UNSUPPORTED"
)

// Error is a refusal, in the words of the registry API: what an origin
// answered, or what Shoal answers itself.
type Error struct {
	// Status is the HTTP status.
	Status int
	// Code is one of the codes above, or another one that an origin sent.
	Code string
	// Message is for people. It holds no credential.
	Message string
	// Challenges are the WWW-Authenticate values that came with a 401,
	// verbatim.
	Challenges []string
	// RetryAfter is how long the origin asked to be left alone, or 0.
	RetryAfter time.Duration
}

// Error returns status, code and message in one line.
func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s: %s", e.Status, http.StatusText(e.Status), e.Code, e.Message)
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

// Body returns the error as the JSON document of the distribution
// specification.
func (e *Error) Body() []byte {
	b, err := json.Marshal(errorBody{Errors: []errorEntry{{Code: e.Code, Message: e.Message}}})
	if err != nil {
		panic(err) // two strings always marshal
	}
	return b
}

// ParseError returns the error in an origin's answer. A body that is not the
// JSON document of the specification is not repeated: it may be a page of
// any length and content. The code then follows from the status; unknown is
// the code of a 404, which means something else for each route.
func ParseError(status int, body []byte, unknown string) *Error {
	e := &Error{Status: status, Code: codeFor(status, unknown), Message: http.StatusText(status)}
	var doc errorBody
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return e
	}
	if c := doc.Errors[0].Code; c != "" {
		e.Code = truncate(c, 64)
	}
	if m := doc.Errors[0].Message; m != "" {
		e.Message = truncate(m, 512)
	}
	return e
}

func codeFor(status int, unknown string) string {
	switch {
	case status == http.StatusUnauthorized:
		return CodeUnauthorized
	case status == http.StatusForbidden:
		return CodeDenied
	case status == http.StatusNotFound:
		return unknown
	case status == http.StatusTooManyRequests:
		return CodeTooManyRequests
	case status >= 500:
		return CodeUnavailable
	default:
		return CodeUnsupported
	}
}

func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
