package attach_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoalproject/shoal/attach"
)

// runtime remembers what was done to it.
type runtime struct {
	mu   sync.Mutex
	done []string // guarded by mu
	fail map[string]error
}

func (r *runtime) do(what string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.done = append(r.done, what)
		return r.fail[what]
	}
}

func TestRun(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name   string
		ready  bool
		fail   map[string]error
		want   []string
		failed bool
	}{
		{"ready", true, nil, []string{"install", "uninstall"}, false},
		{"never ready", false, nil, []string{"uninstall"}, false},
		{"cannot install", true, map[string]error{"install": broken}, []string{"install", "uninstall"}, true},
		{"cannot uninstall", true, map[string]error{"uninstall": broken}, []string{"install", "uninstall"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asked atomic.Int32
			mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				// Not ready at first, whatever comes later.
				n := asked.Add(1)
				if n == 1 || !c.ready {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				if n > 2 && !c.ready {
					cancel()
				}
			}))
			defer mirror.Close()
			r := &runtime{fail: c.fail}
			install := r.do("install")
			err := attach.Run(ctx, attach.Config{
				Ready: mirror.URL,
				Install: func(ctx context.Context) error {
					if asked.Load() < 2 {
						t.Error("installed before the mirror was ready")
					}
					err := install(ctx)
					if err == nil {
						cancel() // told to leave as soon as that is done
					}
					return err
				},
				Uninstall: r.do("uninstall"), Log: slog.New(slog.DiscardHandler),
			})
			if (err != nil) != c.failed || c.failed && !errors.Is(err, broken) {
				t.Errorf("Run: %v", err)
			}
			if !slices.Equal(r.done, c.want) {
				t.Errorf("done: %q, want %q", r.done, c.want)
			}
		})
	}
}
