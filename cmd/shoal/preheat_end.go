package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// begun says that a job goes on without the command.
func (w *watch) begun(job jobs.Job) error {
	if w.json {
		return json.NewEncoder(w.out).Encode(event{"begun", job})
	}
	_, err := fmt.Fprintln(w.out, job.ID)
	return err
}

// decideIn bounds what follows an answer, not how long the answer takes.
const decideIn = 30 * time.Second

// interrupted asks whether the job is to go on. Where nobody can be asked, it
// does. Another interrupt ends the command at once.
func (w *watch) interrupted(ctx context.Context, job jobs.Job) error {
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w.view.close()
	goesOn := &exitError{exitFailed, fmt.Errorf("job %s goes on; --attach %[1]s follows it, --cancel %[1]s ends it", job.ID)}
	if w.json || !term.IsTerminal(int(w.in.Fd())) {
		return goesOn
	}
	fmt.Fprintf(w.err, "\nInterrupted. Shall job %s go on without this command? [Y/n] ", job.ID)
	answer, err := w.ask(ctx)
	if err != nil {
		fmt.Fprintln(w.err)
		return goesOn
	}
	ctx, cancel := context.WithTimeout(ctx, decideIn)
	defer cancel()
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "n") {
		id := job.ID
		if job, err = w.client.Cancel(ctx, id); err != nil {
			return fmt.Errorf("job %s is not canceled: %w", id, err)
		}
		if !job.Ended() || job.State == jobs.Canceled {
			return &exitError{exitFailed, fmt.Errorf("job %s is canceled", job.ID)}
		}
	} else if job, err = w.client.Wait(ctx, job.ID, -1); err != nil || !job.Ended() {
		return goesOn
	}
	// It ended while the question was open.
	w.view.end(job)
	return verdict(job)
}

// ask reads an answer; the end of the input is an empty one. The error is that
// of ctx.
func (w *watch) ask(ctx context.Context) (string, error) {
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(w.in).ReadString('\n') // its end is no answer
		answer <- line
	}()
	select {
	case line := <-answer:
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// cancelJob ends a job that somebody names.
func cancelJob(ctx context.Context, client *api.Client, id string) error {
	job, err := client.Cancel(ctx, id)
	if err == nil && job.Ended() && job.State != jobs.Canceled {
		err = fmt.Errorf("job %s is not canceled: it had ended, %s", id, job.State)
	}
	return err
}
