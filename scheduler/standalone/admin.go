package standalone

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/harbor"
)

// adminHandler serves the operator: health, readiness, metrics, profiles.
func (s *Scheduler) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeStatus(w, http.StatusOK, "ok")
	})
	// Ready at once: what a new scheduler does not know, the daemons tell it
	// when they connect, for which it must be found.
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.stopping.Load() {
			writeStatus(w, http.StatusServiceUnavailable, "stopping")
			return
		}
		writeStatus(w, http.StatusOK, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics(), promhttp.HandlerOpts{}))
	mux.Handle("/api/v1/", s.protect(api.Handler(s.jobs, s.status)))
	harbor.Register(mux, s.jobs, s.protect)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func writeStatus(w http.ResponseWriter, code int, status string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error means that the client has gone.
	_, _ = fmt.Fprintf(w, "{\"status\":%q}\n", status)
}

func (s *Scheduler) metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(swarmCollector{s}, gauge("shoal_build_info", "Always 1, with the version as a label.",
		prometheus.Labels{"version": s.cfg.Version}, func() float64 { return 1 }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if s.identity != nil {
		r.MustRegister(gauge("shoal_tls_certificate_expiry_timestamp_seconds", "When the certificate in use expires, in Unix time.",
			nil, func() float64 { return float64(s.identity.Expires().Unix()) }))
	}
	if s.issuing != nil {
		s.issuing.register(r)
	}
	return r
}

func gauge(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value)
}

// swarmCollector asks the server for its counts.
type swarmCollector struct{ s *Scheduler }

// counts are the gauges of a scheduler.
var counts = []struct {
	desc  *prometheus.Desc
	value func(scheduler.Stats) int
}{
	{desc("shoal_scheduler_peers", "Daemons that are connected."), func(s scheduler.Stats) int { return s.Peers }},
	{desc("shoal_scheduler_swarms", "Blobs that some daemon wants or holds."), func(s scheduler.Stats) int { return s.Swarms }},
	{desc("shoal_scheduler_members", "Daemons that want or hold a blob, summed over blobs."), func(s scheduler.Stats) int { return s.Members }},
	{desc("shoal_scheduler_streams", "Runs of pieces that daemons fetch from origins now."), func(s scheduler.Stats) int { return s.Streams }},
	{desc("shoal_scheduler_holds", "Repositories whose origin asked to be left alone for a while."), func(s scheduler.Stats) int { return s.Holds }},
	{desc("shoal_scheduler_identities", "Certificates, or without TLS addresses, that the daemons have."), func(s scheduler.Stats) int { return s.Identities }},
	{desc("shoal_scheduler_pieces", "Pieces for which tables are kept."), func(s scheduler.Stats) int { return s.Pieces }},
	{desc("shoal_scheduler_bans", "Daemons that are banned for wrong bytes."), func(s scheduler.Stats) int { return s.Bans }},
}

func desc(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

// Describe implements prometheus.Collector.
func (c swarmCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, one := range counts {
		ch <- one.desc
	}
}

// Collect implements prometheus.Collector.
func (c swarmCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stats := c.s.server.Stats(ctx)
	for _, one := range counts {
		if err := ctx.Err(); err != nil {
			ch <- prometheus.NewInvalidMetric(one.desc, fmt.Errorf("the scheduler does not answer: %w", err))
			continue
		}
		ch <- prometheus.MustNewConstMetric(one.desc, prometheus.GaugeValue, float64(one.value(stats)))
	}
}
