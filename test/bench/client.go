package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
)

// client is this program as a process of its own: in another namespace than
// the one that measures, and with CPU time of its own. It prints JSON.
func client(ctx context.Context, args []string) int {
	out, err := clientOutcome(ctx, args)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func clientOutcome(ctx context.Context, args []string) (any, error) {
	var out struct {
		load.Outcome
		CPU float64 `json:"cpu"` // seconds
	}
	var err error
	switch {
	case len(args) == 4 && args[0] == "pull":
		out.Outcome, err = load.Pull(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "wait":
		delay, err := time.ParseDuration(args[4])
		if err != nil {
			return nil, err
		}
		return waitAndPull(ctx, args[1], args[2], args[3], delay)
	case len(args) == 5 && args[0] == "discard":
		var conns int
		var d time.Duration
		if conns, err = strconv.Atoi(args[3]); err != nil {
			return nil, err
		}
		if d, err = time.ParseDuration(args[4]); err != nil {
			return nil, err
		}
		out.Outcome, err = load.Discard(ctx, args[1], args[2], conns, d)
	default:
		err = errors.New("usage: client pull BASE REPOSITORY REFERENCE, client wait BASE REPOSITORY REFERENCE DELAY, or client discard ADDRESS PATH CONNECTIONS TIME")
	}
	out.CPU = ownCPU()
	return out, err
}

// waitAndPull pulls some time after the standard input ends: that reaches many
// at the same moment. A pull that fails is an outcome too.
func waitAndPull(ctx context.Context, base, repo, ref string, delay time.Duration) (bed.Pulled, error) {
	var out bed.Pulled
	if _, err := fmt.Print(bed.Ready); err != nil {
		return out, err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return out, err
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return out, ctx.Err()
	}
	before := ownCPU()
	var err error
	out.Outcome, err = load.Pull(ctx, base, repo, ref)
	out.Ended, out.CPU = time.Now(), ownCPU()-before
	if err != nil {
		out.Failed, out.Wrong = err.Error(), errors.Is(err, load.ErrWrong)
	}
	return out, nil
}

func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
