package daemon

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/registry"
)

// metrics are what the daemon tells Prometheus. The packages below keep
// plain counters; this is where they get their names.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	sent     *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	permits  *prometheus.CounterVec
	served   atomic.Int64 // bytes of bodies
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_requests_total",
			Help: "Requests that the mirror answered, by kind, method and status.",
		}, []string{"kind", "method", "code"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_sent_bytes_total",
			Help: "Bytes of bodies that the mirror sent, by kind.",
		}, []string{"kind"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shoal_mirror_request_seconds",
			Help:    "Time from a request's headers to the end of its answer, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // 1 ms to 4 min
		}, []string{"kind"}),
	}
	m.permits = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_permissions_total",
		Help: "Requests of callers who need a permission, by how it was found: remembered, asked of the origin, unasked as the origin gave no answer, or unknown for that reason and not given.",
	}, []string{"how"})
	for _, how := range []mirror.Permission{mirror.Remembered, mirror.Asked, mirror.Unasked, mirror.Unknown} {
		m.permits.WithLabelValues(string(how))
	}
	version := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_build_info", Help: "Always 1, with the version as a label.",
		ConstLabels: prometheus.Labels{"version": d.cfg.Version},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.sent, m.seconds, m.permits, version, &nodeCollector{d.store, d.fetcher, d.cluster},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if id := d.cfg.identity; id != nil {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_tls_certificate_expiry_timestamp_seconds",
			Help: "When the certificate in use expires, in Unix time; 0 while there is none.",
		}, func() float64 {
			if expires := id.Expires(); !expires.IsZero() {
				return float64(expires.Unix())
			}
			return 0
		}))
	}
	return m
}

var kindNames = map[registry.Kind]string{
	registry.Ping: "ping", registry.Manifests: "manifest", registry.Blobs: "blob",
	registry.Referrers: "referrers", registry.Tags: "tags",
}

func (m *metrics) observe(a mirror.Access) {
	kind, method := kindNames[a.Kind], a.Method
	if method != "GET" && method != "HEAD" {
		method = "other" // a label must not be the client's to choose
	}
	m.requests.WithLabelValues(kind, method, strconv.Itoa(a.Status)).Inc()
	if a.Permission != "" {
		m.permits.WithLabelValues(string(a.Permission)).Inc()
	}
	m.sent.WithLabelValues(kind).Add(float64(a.Bytes))
	m.served.Add(a.Bytes)
	m.seconds.WithLabelValues(kind).Observe(a.Duration.Seconds())
}

// nodeCollector reads the counters of store and fetcher when asked.
type nodeCollector struct {
	store   *store.Store
	fetcher *fetch.Fetcher
	cluster *cluster
}

var (
	blobRequests = desc("shoal_blob_requests_total", "Requests for content by digest: hit in the store, joined a download, or started one.", "result")
	inFlight     = desc("shoal_blobs_in_flight", "Blobs being downloaded.")
	originBytes  = desc("shoal_origin_received_bytes_total", "Bytes of blobs received from origins.")
	connected    = desc("shoal_scheduler_connected", "1 if a scheduler is reachable, 0 if the node is on its own.")
	uploaded     = desc("shoal_peer_uploaded_bytes_total", "Bytes of pieces sent to other nodes.")
	downloaded   = desc("shoal_peer_downloaded_bytes_total", "Bytes of pieces received from other nodes.")
	peerWasted   = desc("shoal_peer_wasted_bytes_total", "Those of the downloaded bytes that came too late to be of use.")
	peerUsed     = desc("shoal_peer_received_bytes_total", "Bytes of pieces from other nodes that were verified.")
	peerConns    = desc("shoal_peer_connections", "Connections with other nodes, one for each blob exchanged.")
	peerDialed   = desc("shoal_peer_handshakes_total", "Connections with other nodes that got through their handshake, by who dialed.", "dialed_by")
	peerTurned   = desc("shoal_peer_turned_away_total", "Connections of other nodes that were over a limit.")
	peerRejected = desc("shoal_peer_rejected_requests_total", "Requests for blocks that were refused, as all upload slots were taken.")
	violations   = desc("shoal_peer_violations_total", "Connections ended because the other node broke the protocol.")
	liars        = desc("shoal_peer_lies_total", "Pieces that a peer sent, and had brought or verified by its own word, and that were wrong; the log names the peer.")
	passedOn     = desc("shoal_peer_passed_on_total", "Wrong pieces that a peer passed on from another, by its word; the log names both.")
	badBlobs     = desc("shoal_bad_blobs_total", "Blobs that did not have their digest and were not delivered.")
	passed       = desc("shoal_passed_through_total", "Blobs that the store could not take.")
	storeHealthy = desc("shoal_store_healthy", "1 if the store takes blobs, 0 if they pass through.")
	storeUsed    = desc("shoal_store_used_bytes", "Bytes of the quota in use, unfinished blobs at full size.")
	storeLimit   = desc("shoal_store_limit_bytes", "The quota as the disk allowed it when room was last made.")
	storeBlobs   = desc("shoal_store_blobs", "Blobs in the store, complete or unfinished.", "state")
	evictions    = desc("shoal_store_evictions_total", "Blobs removed to make room.")
	corruptions  = desc("shoal_store_corruptions_total", "Blobs found rotten on disk and removed.")
	writeErrors  = desc("shoal_store_write_errors_total", "Writes that the disk failed.")
	rotChecks    = desc("shoal_store_rot_checks_total", "Pieces hashed again before they were served.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func (c *nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(c, ch)
}

func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	f := c.fetcher.Stats()
	count(blobRequests, f.Hits, "hit")
	count(blobRequests, f.Joins, "joined")
	count(blobRequests, f.Starts, "started")
	gauge(inFlight, f.Flights)
	count(originBytes, f.OriginBytes)
	reachable := int64(0)
	var p peer.Stats
	if c.cluster != nil {
		p = c.cluster.endpoint.Stats()
		if c.cluster.connected() {
			reachable = 1
		}
	}
	gauge(connected, reachable)
	count(peerUsed, f.PeerBytes)
	count(liars, f.Liars)
	count(passedOn, f.PassedOn)
	count(uploaded, p.Uploaded)
	count(downloaded, p.Downloaded)
	count(peerWasted, p.Wasted)
	gauge(peerConns, p.Conns)
	count(peerDialed, p.Dialed, "us")
	count(peerDialed, p.Accepted, "them")
	count(peerTurned, p.TurnedAway)
	count(peerRejected, p.Rejected)
	count(violations, p.Violations)
	count(badBlobs, f.BadBlobs)
	count(passed, f.PassedThrough)
	s := c.store.Stats()
	healthy := int64(1)
	if c.store.Health() != nil {
		healthy = 0
	}
	gauge(storeHealthy, healthy)
	gauge(storeUsed, s.UsedBytes)
	gauge(storeLimit, s.LimitBytes)
	gauge(storeBlobs, int64(s.Blobs), "complete")
	gauge(storeBlobs, int64(s.Partials), "unfinished")
	count(evictions, s.Evictions)
	count(corruptions, s.Corruptions)
	count(writeErrors, s.WriteErrors)
	count(rotChecks, s.RotChecks)
}
