package registrytest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoalproject/shoal/registry"
)

// Kind is what a request asks for.
type Kind string

// The kinds of requests. Store is a blob at the object store, Unknown a path
// that is none of the others.
const (
	Ping      Kind = "ping"
	Manifest  Kind = "manifest"
	Blob      Kind = "blob"
	Tags      Kind = "tags"
	Referrers Kind = "referrers"
	Token     Kind = "token"
	Store     Kind = "store"
	Unknown   Kind = "unknown"
)

var kinds = map[registry.Kind]Kind{
	registry.Ping: Ping, registry.Manifests: Manifest, registry.Blobs: Blob,
	registry.Tags: Tags, registry.Referrers: Referrers,
}

const (
	tokenPath = "/token"
	storePath = "/store/"
)

func (o *Origin) apiHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == tokenPath && !o.cfg.tokensAway {
			o.tokenHandler().ServeHTTP(w, r)
			return
		}
		p, err := registry.ParsePath(r.URL.Path)
		q := subject{kind: Unknown}
		if err == nil {
			q = subject{kind: kinds[p.Kind], repo: p.Name, digest: p.Digest, ref: p.Tag}
			if p.Digest != "" {
				q.ref = string(p.Digest)
			}
		}
		o.handle(w, r, q, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
			switch {
			case err != nil:
				var e *registry.Error
				errors.As(err, &e)
				refuse(w, e)
			case r.Method != http.MethodGet && r.Method != http.MethodHead:
				refuse(w, &registry.Error{Status: 405, Code: registry.CodeUnsupported, Message: "read only"})
			case o.authorize(w, r, p):
				o.serveAPI(w, r, p)
			}
		})
	})
}

func (o *Origin) serveAPI(w http.ResponseWriter, r *http.Request, p registry.Path) {
	switch p.Kind {
	case registry.Ping:
		writeDocument(w, r, "application/json", []byte("{}"))
	case registry.Manifests:
		o.serveManifest(w, r, p)
	case registry.Blobs:
		o.serveBlob(w, r, p)
	case registry.Tags:
		o.serveTags(w, r, p.Name)
	case registry.Referrers:
		body := mustJSON(v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
			Manifests: o.listReferrers(p.Name, p.Digest),
		})
		writeDocument(w, r, v1.MediaTypeImageIndex, body)
	}
}

func refuse(w http.ResponseWriter, e *registry.Error) {
	for _, c := range e.Challenges {
		w.Header().Add("WWW-Authenticate", c)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_, _ = w.Write(e.Body()) // the client may be gone
}

func writeDocument(w http.ResponseWriter, r *http.Request, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may be gone
	}
}

func (o *Origin) serveManifest(w http.ResponseWriter, r *http.Request, p registry.Path) {
	m, d, ok := o.findManifest(p)
	if !ok {
		refuse(w, &registry.Error{Status: 404, Code: registry.CodeManifestUnknown, Message: "manifest unknown"})
		return
	}
	w.Header().Set("Docker-Content-Digest", string(d))
	writeDocument(w, r, m.mediaType, m.body)
}

func (o *Origin) serveBlob(w http.ResponseWriter, r *http.Request, p registry.Path) {
	c, ok := o.findBlob(p.Name, p.Digest)
	if !ok {
		refuse(w, &registry.Error{Status: 404, Code: registry.CodeBlobUnknown, Message: "blob unknown"})
		return
	}
	if o.store != nil && r.Method == http.MethodGet {
		http.Redirect(w, r, o.signedURL(p.Name, p.Digest), http.StatusTemporaryRedirect)
		return
	}
	serveContent(w, r, p.Digest, c)
}

func serveContent(w http.ResponseWriter, r *http.Request, d digest.Digest, c content) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Accept-Ranges", "bytes")
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(c.r, 0, c.size))
}

// serveTags lists tags in pages, as the specification says.
func (o *Origin) serveTags(w http.ResponseWriter, r *http.Request, repo string) {
	tags, ok := o.listTags(repo)
	if !ok {
		refuse(w, &registry.Error{Status: 404, Code: registry.CodeNameUnknown, Message: "repository unknown"})
		return
	}
	q := r.URL.Query()
	for last := q.Get("last"); len(tags) > 0 && tags[0] <= last; {
		tags = tags[1:]
	}
	if n, err := strconv.Atoi(q.Get("n")); err == nil && n >= 0 && n < len(tags) {
		tags = tags[:n]
		if n > 0 {
			next := url.Values{"n": {q.Get("n")}, "last": {tags[n-1]}}
			w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, r.URL.Path, next.Encode()))
		}
	}
	writeDocument(w, r, "application/json", mustJSON(map[string]any{"name": repo, "tags": tags}))
}

func (o *Origin) signedURL(repo string, d digest.Digest) string {
	expires := strconv.FormatInt(time.Now().Add(o.cfg.urlLife).UnixNano(), 10)
	q := url.Values{"repo": {repo}, "expires": {expires}, "signature": {o.issuer.sign(repo, d, expires)}}
	u := url.URL{Scheme: o.scheme(), Host: o.store.addr, Path: storePath + string(d), RawQuery: q.Encode()}
	return u.String()
}

func (o *Origin) storeHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := digest.Digest(strings.TrimPrefix(r.URL.Path, storePath))
		query := r.URL.Query()
		repo := query.Get("repo")
		o.handle(w, r, subject{kind: Store, repo: repo, digest: d, ref: string(d)}, func(w http.ResponseWriter, r *http.Request) {
			expires, _ := strconv.ParseInt(query.Get("expires"), 10, 64) // 0 has expired
			want := o.issuer.sign(repo, d, query.Get("expires"))
			c, ok := o.findBlob(repo, d)
			switch {
			case r.Header.Get("Authorization") != "":
				http.Error(w, "<Error>only one auth mechanism allowed</Error>", http.StatusBadRequest)
			case !hmac.Equal([]byte(want), []byte(query.Get("signature"))) || time.Now().UnixNano() > expires:
				http.Error(w, "<Error>AccessDenied: Request has expired</Error>", http.StatusForbidden)
			case !ok:
				http.Error(w, "<Error>NoSuchKey</Error>", http.StatusNotFound)
			default:
				serveContent(w, r, d, c)
			}
		})
	})
}

// ExpireURLs makes every signed URL that was given out invalid.
func (o *Origin) ExpireURLs() { o.issuer.rotate() }

func (i *issuer) sign(repo string, d digest.Digest, expires string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	h := hmac.New(sha256.New, i.key)
	fmt.Fprintf(h, "%s\n%s\n%s", repo, d, expires)
	return hex.EncodeToString(h.Sum(nil))
}

func (i *issuer) rotate() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = []byte(rand.Text())
}
