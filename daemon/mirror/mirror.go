package mirror

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/shoalproject/shoal/registry"
)

// Auth says who decides what a caller may read.
type Auth int

const (
	// Relay lets the origin decide for every caller.
	Relay Auth = iota
	// Open gives everything allow-listed to whoever can reach the port. The
	// daemon asks origins anonymously. Beside upstreams that are not open it
	// gives what the origin gives to everyone: content by digest does not
	// tell whose it is.
	Open
	// Node gives to all callers what origins give to the daemon's own
	// credentials.
	Node
)

// Config makes a Mirror.
type Config struct {
	Upstreams *registry.Upstreams
	Origin    Origin
	Blobs     Blobs
	// Sharing may be nil where there are no other nodes.
	Sharing Sharing
	// Auth says who decides over an upstream, by its canonical host. Default
	// Relay.
	Auth func(host string) Auth
	// RelayBasic hands Basic challenges on. A runtime answers them with the
	// password itself, over the plain HTTP of the mirror. Without, it is left
	// to ask the origin.
	RelayBasic bool
	Logger     *slog.Logger
	// Observe is told of every request when it is over. It may be nil.
	Observe func(Access)
	// TagTTL is how long a tag stays resolved before the origin is asked
	// again. Longer spares the origin, shorter sees a moved tag sooner.
	// Default 5 s.
	TagTTL time.Duration
	// PermissionTTL is how long the origin's word that a caller may have
	// some content holds; never longer than the caller's token says that it
	// lives. Longer spares the origin, shorter sees a permission withdrawn
	// sooner. Default 5 min, the life of many tokens.
	PermissionTTL time.Duration
	// Offline says what callers get while the origin cannot be asked;
	// OfflineFor is how long the origin's word holds then. Default 1 h.
	Offline    Offline
	OfflineFor time.Duration
	// PublicAfter is how long after a caller with a token got an image the
	// mirror asks whether everyone may have it, so that everyone gets it while
	// the origin is down. Only with OfflineProven. Default 30 s, when the pull
	// is likely over.
	PublicAfter time.Duration
	// HeaderWait is how long a response waits for its first byte before
	// headers go out, during which it can still become an error. Default 5 s.
	HeaderWait time.Duration
	// WriteStall is how long a client may take for 16 MiB before it is
	// dropped. Default 5 min, which is as long as runtimes wait for us.
	WriteStall time.Duration
	// AnswerStall is the same for 256 KiB of any other answer, which a client
	// has no reason not to read. Default 30 s.
	AnswerStall time.Duration
}

// Access is a request that is over.
type Access struct {
	Kind     registry.Kind
	Method   string
	Status   int
	Bytes    int64 // of the body
	Duration time.Duration
	// Err is why the request failed or its body was cut short.
	Err error
	// Permission says how it was found out whether the caller may have the
	// content; empty where nobody had to, or who had to was refused.
	Permission Permission
}

// Permission is how the caller of a request was found to be permitted.
type Permission string

const (
	// Remembered: the origin has said so lately.
	Remembered Permission = "remembered"
	// Asked: the origin has just said so.
	Asked Permission = "asked"
	// Unasked: the origin cannot be asked, and its word of earlier or
	// Config.Offline permits it.
	Unasked Permission = "unasked"
	// Unknown: the origin cannot be asked, and nothing else permits it.
	Unknown Permission = "unknown"
)

// Bounds of the caches, in entries: a tag is a few hundred bytes, a size or a
// permission a hundred.
const (
	maxTags    = 4096
	maxSizes   = 65536
	maxPermits = 65536
)

// Mirror is the handler of the pull API.
type Mirror struct {
	cfg  Config
	tags *tags
	// sizes are what manifests said of blobs, so that a HEAD costs no
	// request. Only told to callers who may have the blob.
	sizes      *lru.Cache[sizeKey, int64]
	permits    *permits
	manifests  *manifests
	bodies     *semaphore.Weighted // manifests that come along with tags
	listings   *semaphore.Weighted // bytes of large ones that are being sent
	challenges *challenges
	absent     *absent
	publicity  *publicity
	salt       string // of callers' IDs
	allOpen    bool   // no upstream has anything to hide
}

type sizeKey struct {
	repo   registry.Repository
	digest digest.Digest
}

// New returns a Mirror.
func New(cfg Config) (*Mirror, error) {
	if cfg.TagTTL == 0 {
		cfg.TagTTL = 5 * time.Second
	}
	if cfg.Auth == nil {
		cfg.Auth = func(string) Auth { return Relay }
	}
	if cfg.PermissionTTL == 0 {
		cfg.PermissionTTL = 5 * time.Minute
	}
	if cfg.OfflineFor == 0 {
		cfg.OfflineFor = time.Hour
	}
	if cfg.PublicAfter == 0 {
		cfg.PublicAfter = 30 * time.Second
	}
	if cfg.HeaderWait == 0 {
		cfg.HeaderWait = 5 * time.Second
	}
	if cfg.WriteStall == 0 {
		cfg.WriteStall = 5 * time.Minute
	}
	if cfg.Sharing == nil {
		cfg.Sharing = shareNothing{}
	}
	if cfg.AnswerStall == 0 {
		cfg.AnswerStall = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	sizes, err := lru.New[sizeKey, int64](maxSizes)
	if err != nil {
		return nil, err
	}
	tags, err := newTags(cfg.Origin)
	if err != nil {
		return nil, err
	}
	permits, err := newPermits(cfg.PermissionTTL, cfg.OfflineFor)
	if err != nil {
		return nil, err
	}
	challenges, err := newChallenges()
	if err != nil {
		return nil, err
	}
	absent, err := newAbsent()
	if err != nil {
		return nil, err
	}
	publicity, err := newPublicity()
	if err != nil {
		return nil, err
	}
	m := &Mirror{
		cfg: cfg, tags: tags, sizes: sizes, permits: permits, manifests: newManifests(),
		bodies: semaphore.NewWeighted(maxBodies), listings: semaphore.NewWeighted(maxListings), challenges: challenges, absent: absent, publicity: publicity, salt: rand.Text(),
		allOpen: true,
	}
	for _, host := range cfg.Upstreams.Hosts() {
		m.allOpen = m.allOpen && cfg.Auth(host) == Open
	}
	return m, nil
}

// call is one request on its way.
type call struct {
	*Mirror
	w      http.ResponseWriter
	r      *http.Request
	path   registry.Path
	repo   registry.Repository
	caller Caller
	proven bool // the caller needs no proof
	// reserved: a place among the bodies is held.
	reserved bool
	// remembered: the refusal was of an earlier request.
	remembered bool
	query      url.Values
	access     Access
}

// ServeHTTP answers one request.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{Mirror: m, w: w, r: r}
	c.access.Method = r.Method
	cut := c.serve(r.Context())
	c.access.Duration = time.Since(start)
	c.log()
	if m.cfg.Observe != nil {
		m.cfg.Observe(c.access)
	}
	if cut {
		panic(http.ErrAbortHandler) // closes the connection short
	}
}

// serve answers the request and reports whether the body must be cut short.
func (c *call) serve(ctx context.Context) (cut bool) {
	if err := c.parse(); err != nil {
		c.fail(err)
		return false
	}
	if c.path.Kind == registry.Ping {
		c.ping()
		return false
	}
	if err := c.challenged(c.cfg.TagTTL); err != nil {
		c.fail(err)
		return false
	}
	if err := c.knownAbsent(); err != nil {
		c.fail(err)
		return false
	}
	switch c.path.Kind {
	case registry.Manifests:
		return c.manifest(ctx)
	case registry.Blobs:
		return c.blob(ctx)
	default:
		c.pass(ctx)
	}
	return false
}

func (c *call) parse() (err error) {
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		c.w.Header().Set("Allow", "GET, HEAD")
		return &registry.Error{Status: http.StatusMethodNotAllowed, Code: registry.CodeUnsupported, Message: "this mirror is read-only"}
	}
	if c.r.URL.Host != "" {
		return badRequest("this is not a forward proxy: send the path alone")
	}
	if c.path, err = registry.ParsePath(c.r.URL.Path); err != nil {
		return err
	}
	c.access.Kind = c.path.Kind
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return badRequest("the query cannot be read")
	}
	if c.path.Kind == registry.Ping {
		return nil
	}
	if c.repo, err = c.cfg.Upstreams.Select(c.query["ns"], c.path.Name); err != nil {
		return err
	}
	auth := c.r.Header["Authorization"]
	switch {
	case len(auth) > 1:
		return badRequest("more than one Authorization header")
	case len(auth) == 1:
		c.caller = Caller{Authorization: auth[0], ID: callerID(c.salt, auth[0]), expires: expiry(auth[0])}
	case c.cfg.Auth(c.repo.Host) == Relay:
		c.caller = Caller{Anonymous: true, ID: "anonymous"}
	default:
		c.proven = c.allOpen
	}
	return nil
}

func badRequest(message string) error {
	return &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeUnsupported, Message: message}
}

func (c *call) ping() {
	c.header("application/json", 2)
	c.status(http.StatusOK)
	if c.r.Method != http.MethodHead {
		c.access.Err = c.write([]byte("{}"))
	}
}

// header sets what every answer with a body carries.
func (c *call) header(contentType string, length int64) {
	h := c.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", fmt.Sprint(length))
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	if c.repo.Host != "" {
		h.Set("OCI-Namespace", c.repo.Host)
	}
}

// content sets what an answer with content by digest carries.
func (c *call) content(contentType string, d digest.Digest, length int64) {
	c.header(contentType, length)
	h := c.w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", `"`+d.String()+`"`)
	h.Set("X-Content-Type-Options", "nosniff")
}

func (c *call) status(code int) {
	c.access.Status = code
	c.extend()
	c.w.WriteHeader(code)
}

// extend gives the client time for the next bytes of an answer.
func (c *call) extend() {
	// A writer without deadlines is one of a test; one that is closed says so.
	_ = http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(c.cfg.AnswerStall))
}

// write sends all of b, as long as the client takes it.
func (c *call) write(b []byte) error {
	for {
		c.extend()
		n, err := c.w.Write(b[:min(len(b), portionOfManifest)])
		c.access.Bytes += int64(n)
		if b = b[n:]; err != nil || len(b) == 0 {
			return err
		}
	}
}

func (c *call) log() {
	level, a := slog.LevelDebug, c.access
	// A challenge is how every pull of a private image begins.
	challenged := c.caller.Anonymous && a.Status == http.StatusUnauthorized
	if a.Err != nil && !challenged && c.r.Context().Err() == nil {
		level = slog.LevelWarn
	}
	if !c.cfg.Logger.Enabled(c.r.Context(), level) {
		return
	}
	attrs := []any{"method", a.Method, "path", c.r.URL.Path, "status", a.Status, "bytes", a.Bytes, "seconds", a.Duration.Seconds()}
	if c.repo.Host != "" {
		attrs = append(attrs, "registry", c.repo.Host)
	}
	if a.Err != nil {
		attrs = append(attrs, "err", a.Err)
	}
	c.cfg.Logger.Log(c.r.Context(), level, "request", attrs...)
}
