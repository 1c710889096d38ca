// Package issuer gives nodes their certificates. A node sends a certificate
// request and the token of its pod; the node's name comes from whoever reviews
// the token, and nothing that the request asks for is granted.
//
//	POST /v1/certificate
//	Authorization: Bearer TOKEN
//
//	-----BEGIN CERTIFICATE REQUEST-----
//
// The answer is the certificate, as PEM. What is refused is told in one line of
// text: 400 for a bad request, 401 for a token that is not good, 403 for a token
// of somebody else, 429 for too many requests, and 503 while nobody can review
// tokens.
//
// It knows certificates, HTTP, and how Kubernetes reviews tokens. It must not
// know swarms.
package issuer
