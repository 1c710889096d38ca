package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// schedulerFlags say where the API of schedulers is.
type schedulerFlags struct {
	addrs             []string
	tokenFile, caFile string
}

func (s *schedulerFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&s.addrs, "scheduler", []string{"127.0.0.1:4404"}, "`ADDRESS` of a scheduler's --admin-listen, HOST:PORT or a URL; repeatable: the next one is asked when one is gone")
	f.StringVar(&s.tokenFile, "api-token-file", "", "`FILE` with the token of the scheduler's API")
	f.StringVar(&s.caFile, "scheduler-ca", "", "PEM `FILE` to verify a scheduler behind https with")
}

func (s *schedulerFlags) client() (*api.Client, error) {
	c, err := api.NewClient(s.addrs, s.tokenFile, s.caFile)
	if err != nil {
		return nil, &usageError{err}
	}
	return c, nil
}

// exitError ends the command with a code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

type preheatFlags struct {
	schedulers schedulerFlags
	registries registries
	spec       jobs.Spec
	timeout    time.Duration
	pin        time.Duration
	wait       bool
	output     string
	attach     string
	cancel     string
}

func newPreheatCommand() *cobra.Command {
	var flags preheatFlags
	cmd := &cobra.Command{
		Use:   "preheat IMAGE...",
		Short: "Bring images onto nodes before they are needed",
		Long: `Brings images onto the nodes of a cluster before anybody there asks for them.
The registry sends each image about once; the nodes share it. Pulls that somebody
waits for go first.

The command asks the registry itself what each tag stands for; the nodes get that
image, whatever the tag becomes meanwhile.

Credentials are those of docker's config.json, for what a registry does not give
to everyone. Where a registry gives tokens, a token for the image alone goes to the
scheduler and to the nodes that are chosen, which keep it in memory; it is renewed
while the command waits. It needs a scheduler and nodes with certificates: without
TLS anybody could take the name of a node, and a job with credentials is refused.

The command waits until the job has ended. Interrupted, it asks whether the job
is to go on. Exit code 0 says that every node has every image, 3 that some nodes
have not, 1 that none has or the job did not begin, 2 that a setting is wrong.`,
		Example: `  # Onto all nodes:
  shoal preheat registry.example.com/app:v2

  # Onto three nodes of a zone, safe from eviction for a day:
  shoal preheat --nodes zone=eu-1a --nodes 3 --pin 24h alpine:3

  # As a step of a deployment:
  shoal preheat --output json --timeout 10m registry.example.com/app:v2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (flags.attach == "" && flags.cancel == "") {
				return &usageError{errors.New("name the images to preheat, or a job with --attach or --cancel")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			flags.spec.Images = args
			return flags.run(cmd)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	flags.schedulers.add(f)
	f.StringArrayVar(&flags.spec.Nodes, "nodes", nil, "`NODES`: all, N, N%, zone=Z, label:KEY=VALUE, or names with commas between; repeatable, each chooses from what the one before left (default all)")
	f.StringArrayVar(&flags.spec.Platforms, "platform", nil, "`PLATFORM` of images that are there for several: os/arch[/variant], or all; repeatable (default each node's own)")
	f.IntVar(&flags.spec.Concurrency, "concurrency", 0, "`NUMBER` of nodes at a time; 0 is all")
	f.DurationVar(&flags.timeout, "timeout", jobs.DefaultTimeout, "`TIME` after which what is not done has failed")
	f.DurationVar(&flags.pin, "pin", 0, "`TIME` for which the images are safe from eviction")
	f.BoolVar(&flags.wait, "wait", true, "wait for the job to end; --wait=false prints its ID")
	f.StringVar(&flags.output, "output", "text", "`FORMAT`: text, or json for one event a line")
	f.StringVar(&flags.attach, "attach", "", "wait for the job with this `ID` in place of beginning one")
	f.StringVar(&flags.cancel, "cancel", "", "cancel the job with this `ID`")
	f.BoolVar(&flags.registries.plainHTTP, "plain-http", false, "ask the registries over plain HTTP, for the token; how daemons reach them is theirs to know")
	f.StringVar(&flags.registries.caFile, "registry-ca", "", "PEM `FILE` to verify the registries with")
	f.StringVar(&flags.registries.dockerConfig, "docker-config", "", "`FILE` with the credentials (default docker's own)")
	f.String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

func (p *preheatFlags) run(cmd *cobra.Command) error {
	if p.output != "text" && p.output != "json" {
		return &usageError{fmt.Errorf("--output: %q is none of text, json", p.output)}
	}
	if p.timeout < time.Second || p.pin < 0 {
		return &usageError{errors.New("--timeout must be at least 1s, and --pin not negative")}
	}
	p.spec.Timeout, p.spec.Pin = int64(p.timeout/time.Second), int64(p.pin/time.Second)
	client, err := p.schedulers.client()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if p.cancel != "" {
		return cancelJob(ctx, client, p.cancel)
	}
	w := &watch{client: client, json: p.output == "json", out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), in: os.Stdin}
	if p.attach != "" {
		job, err := client.Wait(ctx, p.attach, -1)
		if err != nil {
			return err
		}
		return w.run(ctx, job)
	}
	if err := p.spec.Check(); err != nil {
		return &usageError{err}
	}
	if w.grants, err = newGrants(p.registries, p.spec.Images, w.notice); err != nil {
		return err
	}
	defer w.grants.close()
	if p.spec.Images, err = w.grants.resolve(ctx); err != nil {
		return err
	}
	creds, err := w.grants.get(ctx)
	if err != nil {
		return err
	}
	job, err := client.Create(ctx, api.Request{Spec: p.spec, Credentials: creds})
	if err != nil {
		var answer *api.AnswerError
		if errors.As(err, &answer) && answer.Status == http.StatusBadRequest {
			return &usageError{err}
		}
		return err
	}
	if !p.wait {
		return w.begun(job)
	}
	return w.run(ctx, job)
}

// watch follows a job to its end.
type watch struct {
	client   *api.Client
	grants   *grants // nil: there are none to renew
	json     bool
	out, err io.Writer
	in       *os.File
	view     view
}

// notice says something beside the job.
func (w *watch) notice(text string) { fmt.Fprintln(w.err, "shoal preheat: "+text) }

// lostFor is how long no scheduler may answer before the command gives up.
const lostFor = 2 * time.Minute

// run shows a job until it has ended. The error has the exit code.
func (w *watch) run(ctx context.Context, job jobs.Job) error {
	w.view = newView(w.out, w.err, w.json, job)
	defer w.view.close()
	lost := time.Time{}
	renew := time.Time{}
	if w.grants != nil {
		renew = w.grants.next(time.Now())
	}
	for !job.Ended() {
		w.view.show(job)
		if w.grants != nil && (job.Needs || !renew.IsZero() && time.Now().After(renew)) {
			renew = w.renew(ctx, job.ID)
		}
		// Answers come when something has changed; twice a second is
		// enough for eyes.
		pause := time.NewTimer(500 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return w.interrupted(ctx, job)
		}
		next, err := w.client.Wait(ctx, job.ID, job.Revision)
		var answer *api.AnswerError
		switch {
		case err == nil:
			job, lost = next, time.Time{}
		case ctx.Err() != nil:
			return w.interrupted(ctx, job)
		case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
			// It was there: its record is gone with a scheduler.
			return unknown(job, err)
		case errors.As(err, &answer) && answer.Status != http.StatusServiceUnavailable:
			return err
		case lost.IsZero():
			lost = time.Now()
			w.view.say("no scheduler answers; the nodes go on meanwhile")
		case time.Since(lost) > lostFor:
			return unknown(job, err)
		}
	}
	w.view.show(job)
	w.view.end(job)
	return verdict(job)
}

// unknown is the error for a job that nobody answers for.
func unknown(job jobs.Job, err error) error {
	return fmt.Errorf("job %s: what became of it is not known: %w", job.ID, err)
}

// renew gives a job newer credentials, and returns when to do it again.
func (w *watch) renew(ctx context.Context, id string) time.Time {
	creds, err := w.grants.get(ctx)
	if err == nil && len(creds) > 0 {
		err = w.client.Renew(ctx, id, creds)
	}
	if err != nil && ctx.Err() == nil {
		w.view.say("credentials are not renewed: " + err.Error())
		return time.Now().Add(10 * time.Second)
	}
	return w.grants.next(time.Now())
}

// verdict returns nil for a job that is done, else an error with the exit
// code.
func verdict(job jobs.Job) error {
	switch {
	case job.State == jobs.Done:
		return nil
	case job.State == jobs.Failed && job.Counts.Done > 0:
		return &exitError{exitSome, fmt.Errorf("job %s: %s", job.ID, job.Reason)}
	default:
		return &exitError{exitFailed, fmt.Errorf("job %s is %s: %s", job.ID, job.State, job.Reason)}
	}
}
