// Package attach points a container runtime at a mirror for as long as the
// mirror is there: from the moment it is ready until it is told to leave.
//
// It knows when. It must not know how a runtime is configured.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

const (
	// askEvery is how often a mirror that is not ready is asked again.
	askEvery = 500 * time.Millisecond
	// askFor bounds one question.
	askFor = 5 * time.Second
	// leaveFor bounds Uninstall: kubelet and systemd kill what takes long.
	leaveFor = 20 * time.Second
)

// Config says what is to be done. All fields are needed.
type Config struct {
	// Ready is a URL that answers 200 when the mirror serves.
	Ready string
	// Install makes the runtime ask the mirror, Uninstall takes that back. Both
	// may find it done already.
	Install, Uninstall func(context.Context) error
	Log                *slog.Logger
}

// Run waits until the mirror is ready, installs, waits until ctx ends,
// uninstalls, and returns nil. A mirror that is away for a while stays
// installed: runtimes go past one that does not answer.
//
// What a process before this one may have left behind, one that was killed, is
// taken back too, whether or not the mirror ever was ready.
func Run(ctx context.Context, cfg Config) (err error) {
	defer func() {
		leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveFor)
		defer cancel()
		if e := cfg.Uninstall(leave); e != nil {
			err = errors.Join(err, fmt.Errorf("uninstalling: %w", e))
			return
		}
		cfg.Log.Info("the runtime does not ask the mirror any more")
	}()
	if !wait(ctx, cfg) {
		return nil
	}
	if err := cfg.Install(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("installing: %w", err)
	}
	cfg.Log.Info("the runtime asks the mirror")
	<-ctx.Done()
	return nil
}

// wait reports that the mirror is ready, and false when ctx ended before.
func wait(ctx context.Context, cfg Config) bool {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	client := &http.Client{Timeout: askFor, Transport: &http.Transport{DisableKeepAlives: true}}
	last := ""
	for {
		err := ready(ctx, client, cfg.Ready)
		if err == nil {
			return true
		}
		if err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			cfg.Log.Info("the mirror is not ready", "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

func ready(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
