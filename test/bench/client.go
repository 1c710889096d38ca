package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/shoalproject/shoal/test/bench/load"
)

// client is this program as a process of its own: in another namespace than
// the one that measures, and with CPU time of its own. It prints JSON.
func client(ctx context.Context, args []string) int {
	out, err := clientOutcome(ctx, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	err = json.NewEncoder(os.Stdout).Encode(struct {
		load.Outcome
		CPU float64 `json:"cpu"` // seconds
	}{out, ownCPU()})
	if err != nil {
		return 1
	}
	return 0
}

func clientOutcome(ctx context.Context, args []string) (load.Outcome, error) {
	switch {
	case len(args) == 4 && args[0] == "pull":
		return load.Pull(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "discard":
		conns, err := strconv.Atoi(args[3])
		if err != nil {
			return load.Outcome{}, err
		}
		d, err := time.ParseDuration(args[4])
		if err != nil {
			return load.Outcome{}, err
		}
		return load.Discard(ctx, args[1], args[2], conns, d)
	}
	return load.Outcome{}, errors.New("usage: client pull BASE REPOSITORY TAG, or client discard ADDRESS PATH CONNECTIONS TIME")
}

func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
