package runtimes

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Options are what to install.
type Options struct {
	// Mirror is the base URL of the mirror: scheme and host alone.
	Mirror string
	// Registries are the upstream hosts to ask the mirror for, as image names
	// carry them; [Everything] stands for those without settings of their own.
	Registries []string
	// Config is the runtime's main configuration file. Empty: the usual
	// places are looked at.
	Config string
	// Release is that of the containerd on the node, if known.
	Release Release
}

// Everything, in the place of a registry, is every registry that has no
// configuration of its own.
const Everything = "_default"

// Plan is what an install is to make of a node.
type Plan struct {
	// Runtime is one of Names, Mirror the URL that it is to ask.
	Runtime, Mirror string
	// Found says, in a line each, what there was and what it means.
	Found []string
	// Warnings say, in a line each, what will not work as hoped.
	Warnings []string
	// Changes are the files that are to differ, in the order of writing.
	Changes []Change
	// Restart is the command that makes the runtime read what it reads only
	// at its start.
	Restart []string
}

// Change is one file as it is to become.
type Change struct {
	Path string
	// Before and After are the content; Before is nil if there is no file.
	Before, After []byte
	// What is done to it, for people.
	What string
	// Restart says that the runtime reads the file at its start only.
	Restart bool
}

func (p *Plan) found(format string, args ...any) {
	p.Found = append(p.Found, fmt.Sprintf(format, args...))
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// change adds a change, unless it changes nothing.
func (p *Plan) change(c Change) {
	if c.Before == nil || !bytes.Equal(c.Before, c.After) {
		p.Changes = append(p.Changes, c)
	}
}

// Names of runtimes.
const (
	Containerd = "containerd"
	K3s        = "k3s"
	RKE2       = "rke2"
	CRIO       = "crio"
	Docker     = "docker"
	BuildKit   = "buildkit"
)

// planner makes the plan for one kind of runtime.
type planner struct {
	// traces are files and directories of which one is on every node that
	// has the runtime.
	traces []string
	plan   func(Tree, Options, *Plan) error
	// restart is the command by which the runtime reads its files again.
	restart func(Tree) []string
}

// Names returns the names of all runtimes, in the order in which a node's own
// is looked for: what a kubelet uses first.
func Names() []string { return []string{K3s, RKE2, Containerd, CRIO, Docker, BuildKit} }

var planners = map[string]planner{
	K3s:  {[]string{"/etc/rancher/k3s", "/var/lib/rancher/k3s"}, planRancher("k3s"), restartRancher("k3s")},
	RKE2: {[]string{"/etc/rancher/rke2", "/var/lib/rancher/rke2"}, planRancher("rke2"), restartRancher("rke2")},
	Containerd: {append([]string{"/etc/containerd", "/usr/bin/containerd", "/usr/local/bin/containerd"}, containerdPlaces...),
		planContainerd, systemctl("restart", "containerd")},
	CRIO:     {[]string{"/etc/crio", "/usr/bin/crio", "/usr/local/bin/crio", "/etc/containers/registries.conf", "/etc/containers/registries.conf.d"}, planCRIO, systemctl("reload", "crio")},
	Docker:   {[]string{"/etc/docker", "/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"}, planDocker, systemctl("reload", "docker")},
	BuildKit: {[]string{"/etc/buildkit", "/usr/bin/buildkitd", "/usr/local/bin/buildkitd"}, planBuildKit, systemctl("restart", "buildkit")},
}

func systemctl(verb, unit string) func(Tree) []string {
	return func(Tree) []string { return []string{"systemctl", verb, unit} }
}

// RestartOf returns the command by which a runtime reads its files again.
func RestartOf(tree Tree, runtime string) []string { return planners[runtime].restart(tree) }

// Has reports whether a path exists, as a file of any size or a directory.
type Has func(path string) bool

// Detect returns the runtimes of a node, in the order of Names.
func Detect(has Has) []string {
	var found []string
	for _, name := range Names() {
		if slices.ContainsFunc(planners[name].traces, has) {
			found = append(found, name)
		}
	}
	return found
}

// NewPlan says what has to change on the node so that the runtime asks the
// mirror first for each of the registries, and goes on as before when that
// cannot help. Nothing is changed yet.
func NewPlan(tree Tree, runtime string, o Options) (*Plan, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	how, ok := planners[runtime]
	if !ok {
		return nil, fmt.Errorf("runtime %q is none of %s", runtime, strings.Join(Names(), ", "))
	}
	p := &Plan{Runtime: runtime, Mirror: o.Mirror, Restart: how.restart(tree)}
	if err := how.plan(tree, o, p); err != nil {
		return nil, err
	}
	return p, nil
}

// Check reports options that make no sense for any runtime.
func (o Options) Check() error {
	if _, err := o.mirror(); err != nil {
		return err
	}
	if len(o.Registries) == 0 {
		return errors.New("no registry is named")
	}
	return nil
}

// mirror returns the mirror's URL.
func (o Options) mirror() (*url.URL, error) {
	u, err := url.Parse(o.Mirror)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		u.Path != "" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(o.Mirror, "\"'\\ \t\n") {
		return nil, fmt.Errorf("mirror %q: want http://HOST:PORT", o.Mirror)
	}
	return u, nil
}

// onlyNamed is an error if Everything is asked of a runtime that cannot be
// told so.
func (o Options) onlyNamed(runtime string) error {
	if slices.Contains(o.Registries, Everything) {
		return fmt.Errorf("%s has no setting for every registry: name them", runtime)
	}
	return nil
}
