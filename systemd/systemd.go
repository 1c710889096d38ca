// Package systemd is what a process has to say to the service manager that
// started it, and what it gets from it: notifications, the watchdog, sockets
// that outlive the process. Without systemd all of it does nothing.
//
// It knows sd_notify(3) and sd_listen_fds(3). It must not know what is served.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Sockets returns the sockets that systemd passed to this process, by name: the
// FileDescriptorName= of the socket unit, which must be one of names, and used
// once. Only the first call gets them.
func Sockets(names ...string) (map[string]net.Listener, error) {
	var (
		sockets = map[string]net.Listener{}
		wrong   error
	)
	for _, f := range activation.Files(true) {
		name := f.Name()
		l, err := net.FileListener(f)
		f.Close()
		switch {
		case err != nil:
			wrong = errors.Join(wrong, fmt.Errorf("socket %q from systemd: %w", name, err))
			continue
		case !slices.Contains(names, name):
			err = fmt.Errorf("socket %q from systemd: its unit needs FileDescriptorName=, one of %s", name, strings.Join(names, ", "))
		case sockets[name] != nil:
			err = fmt.Errorf("two sockets from systemd are called %q", name)
		}
		if err != nil {
			l.Close()
			wrong = errors.Join(wrong, err)
			continue
		}
		sockets[name] = l
	}
	if wrong != nil {
		for _, l := range sockets {
			l.Close()
		}
		return nil, wrong
	}
	return sockets, nil
}

// Attend tells systemd that the process is ready, and that it stops when ctx
// ends, and then returns. Meanwhile it answers the watchdog, if the unit has
// one, as long as alive returns nil; it is called twice in WatchdogSec= and
// must return when its context ends.
func Attend(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	tell(log, daemon.SdNotifyReady)
	defer tell(log, daemon.SdNotifyStopping)
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog of systemd is off", "err", err)
	}
	if interval < 2 { // or there is none
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := check(ctx, interval/2, alive); err == nil {
			tell(log, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("watchdog of systemd is not answered", "err", err)
		}
	}
}

func check(ctx context.Context, limit time.Duration, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return alive(ctx)
}

func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd is not told", "state", state, "err", err)
	}
}
