package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/term"

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

// interrupted asks whether the job is to go on. Where nobody can be asked, it
// does.
func (w *watch) interrupted(ctx context.Context, job jobs.Job) error {
	w.view.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if !w.json && term.IsTerminal(int(w.in.Fd())) {
		fmt.Fprintf(w.err, "\nInterrupted. Shall job %s go on without this command? [Y/n] ", job.ID)
		if !w.yes() {
			if err := w.client.Cancel(ctx, job.ID); err != nil {
				return fmt.Errorf("job %s is not canceled: %w", job.ID, err)
			}
			return &exitError{exitFailed, fmt.Errorf("job %s is canceled", job.ID)}
		}
	}
	return &exitError{exitFailed, fmt.Errorf("job %s goes on; --attach %[1]s follows it, --cancel %[1]s ends it", job.ID)}
}

// yes reads an answer; none, and another interrupt, are a yes.
func (w *watch) yes() bool {
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt)
	defer signal.Stop(again)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(w.in).ReadString('\n') // its end is no answer
		answer <- line
	}()
	select {
	case line := <-answer:
		return !strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "n")
	case <-again:
		return true
	}
}
