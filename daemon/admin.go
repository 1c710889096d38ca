package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shoalproject/shoal/nodeinfo"
)

// health is what /healthz and /readyz answer.
type health struct {
	Status string `json:"status"`
	// Store is why the store takes nothing, if it does not.
	Store string `json:"store,omitempty"`
	// Mirror is why the mirror turns requests away, if it does.
	Mirror string `json:"mirror,omitempty"`
}

// adminHandler serves the operator: health, readiness, metrics, profiles.
func (d *Daemon) adminHandler() http.Handler {
	mux := http.NewServeMux()
	// Alive also with a full disk: a restart would not empty it.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, http.StatusOK, d.health())
	})
	// Ready does not depend on other nodes or the origin: a node that is
	// alone still serves what it has.
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if d.stopping.Load() {
			writeHealth(w, http.StatusServiceUnavailable, health{Status: "stopping"})
			return
		}
		if d.front.Busy(notReadyFor) {
			writeHealth(w, http.StatusServiceUnavailable, health{
				Status: "busy", Mirror: fmt.Sprintf("all of the %d connections of --max-connections have a request under way: others are closed", d.cfg.MaxConnections),
			})
			return
		}
		writeHealth(w, http.StatusOK, d.health())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET "+nodeinfo.Path, d.serveNode)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func (d *Daemon) health() health {
	if err := d.store.Health(); err != nil {
		return health{Status: "degraded", Store: err.Error()}
	}
	return health{Status: "ok"}
}

func writeHealth(w http.ResponseWriter, status int, h health) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(h)
}
