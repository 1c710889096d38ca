package runtimes

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Finding is one thing that was looked at.
type Finding struct {
	// Check is what was looked at, in a word.
	Check string
	// Trap says that it keeps pulls from the mirror, or worse.
	Trap bool
	Text string
	// Remedy is what to do about a trap.
	Remedy string
}

// Inspection is what a runtime's configuration amounts to.
type Inspection struct {
	Findings []Finding
	// Registries are those for which the runtime asks the mirror, Everything
	// among them.
	Registries []string
	// Files are those that the runtime reads at its start only.
	Files []string
}

func (in *Inspection) ok(check, format string, args ...any) {
	in.Findings = append(in.Findings, Finding{Check: check, Text: fmt.Sprintf(format, args...)})
}

func (in *Inspection) trap(check, remedy, format string, args ...any) {
	in.Findings = append(in.Findings, Finding{check, true, fmt.Sprintf(format, args...), remedy})
}

const (
	checkConfig = "configuration"
	checkPath   = "config_path"
	checkHosts  = "hosts.toml"
)

// usualMirror is what an install names when it is told nothing.
const usualMirror = "http://127.0.0.1:4400"

// installing is the remedy that a command is.
func (o Options) installing(flags ...string) string {
	if o.Mirror != usualMirror {
		flags = append(flags, "--mirror "+o.Mirror)
	}
	return fmt.Sprintf("run %q", strings.Join(append([]string{"shoal containerd install"}, flags...), " "))
}

// Inspect says whether a runtime asks the mirror, and why not. Without
// registries in the options, those are looked at for which it does.
func Inspect(tree Tree, runtime string, o Options) *Inspection {
	in := &Inspection{}
	switch runtime {
	case Containerd:
		main := containerdMain(tree, o)
		inspectContainerd(tree, main, o, in)
	case K3s, RKE2:
		inspectPlanned(tree, runtime, o, in)
		in.generated(tree, runtime, o)
	case CRIO:
		inspectCRIO(tree, o, in)
	default:
		inspectPlanned(tree, runtime, o, in)
	}
	return in
}

// generated looks at what k3s or RKE2 made of registries.yaml at its start.
func (in *Inspection) generated(tree Tree, runtime string, o Options) {
	main := "/var/lib/rancher/" + runtime + "/agent/etc/containerd/config.toml"
	if !isFile(tree, main) {
		return
	}
	made := &Inspection{}
	inspectContainerd(tree, main, o, made)
	right := !slices.ContainsFunc(in.Findings, func(f Finding) bool { return f.Trap })
	for _, f := range made.Findings {
		if f.Trap && right {
			f.Remedy = "restart it, since registries.yaml is right: " + strings.Join(RestartOf(tree, runtime), " ")
		}
		in.Findings = append(in.Findings, f)
	}
	in.Registries = made.Registries
}

// inspectPlanned looks whether an install would change anything.
func inspectPlanned(tree Tree, runtime string, o Options, in *Inspection) {
	if len(o.Registries) == 0 {
		o.Registries = installed(tree, runtime, o)
	}
	if len(o.Registries) == 0 {
		o.Registries = []string{"docker.io"}
	}
	in.Registries = o.Registries
	p, err := NewPlan(tree, runtime, o)
	switch {
	case err != nil:
		in.trap(checkConfig, "see the file named", "%v", err)
	case len(p.Changes) > 0:
		in.trap(checkConfig, o.installing("--runtime "+runtime), "%s does not name the mirror %s", p.Changes[0].Path, o.Mirror)
	default:
		in.ok(checkConfig, "%s: it names the mirror", p.Found[0])
	}
}

// installed returns the registries for which a runtime's own file has the
// mirror, in order.
func installed(tree Tree, runtime string, o Options) (list []string) {
	var names []string
	switch runtime {
	case K3s, RKE2:
		names = rancherRegistries(tree, rancherFile(runtime, o))
	case BuildKit:
		names = buildKitRegistries(tree, buildKitFile(o))
	}
	for _, name := range names {
		o.Registries = []string{name}
		if p, err := NewPlan(tree, runtime, o); err == nil && len(p.Changes) == 0 {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// inspectCRIO looks which registries have the mirror among theirs.
func inspectCRIO(tree Tree, o Options, in *Inspection) {
	mirror, err := o.mirror()
	var entries map[string]map[string]any
	var files map[string]string
	if err == nil {
		entries, files, err = allRegistryEntries(tree, o, "")
	}
	if err != nil {
		in.trap(checkConfig, "see the file named", "%v", err)
		return
	}
	for name, e := range entries {
		list, _ := e["mirror"].([]any)
		want, err := mirrorLocation(mirror, name)
		if err == nil && slices.ContainsFunc(list, func(m any) bool { t, _ := m.(map[string]any); return text(t, "location") == want }) {
			in.Registries = append(in.Registries, name)
		}
	}
	slices.Sort(in.Registries)
	in.checkLocations(entries, files)
	for _, r := range o.Registries {
		if !slices.Contains(in.Registries, r) {
			in.trap(checkConfig, o.installing("--runtime crio", "--registry "+r), "the registries.conf in force does not name the mirror %s for %s", o.Mirror, r)
		}
	}
	if len(in.Registries) == 0 {
		in.trap(checkConfig, o.installing("--runtime crio"), "no registries.conf names the mirror %s", o.Mirror)
		return
	}
	in.ok(checkConfig, "registries.conf names the mirror for %s", strings.Join(in.Registries, ", "))
}

// checkLocations looks at every location of the entries in force: one that
// cannot be part of an image name fails each pull of the registry.
func (in *Inspection) checkLocations(entries map[string]map[string]any, files map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		locations := []string{text(e, "location")}
		list, _ := e["mirror"].([]any)
		for _, m := range list {
			t, _ := m.(map[string]any)
			locations = append(locations, text(t, "location"))
		}
		for _, location := range locations {
			if location == "" { // that of a wildcard: the image's own
				continue
			}
			if err := checkLocation(location); err != nil {
				in.trap(checkConfig, "correct the file; for the mirror, run \"shoal containerd install\" again, which writes HOST_PORT for HOST:PORT",
					"%s: every pull of %s fails: %v", files[name], name, err)
			}
		}
	}
}

func inspectContainerd(tree Tree, main string, o Options, in *Inspection) {
	c, err := loadContainerd(tree, main, o.Release)
	if err != nil {
		in.trap(checkConfig, "correct the file: containerd does not start with it", "%v", err)
		return
	}
	described := &Plan{}
	c.describe(described)
	in.ok(checkConfig, "%s", described.Found[0])
	for _, f := range c.files {
		in.Files = append(in.Files, f.path)
	}
	now := c.pulls()
	switch {
	case c.criDisabled():
		in.ok(checkPath, "the CRI plugin is disabled: nerdctl and the like read %s", defaultHosts)
		now.roots = []string{defaultHosts}
	case now.refused:
		in.trap(checkPath, "remove registry.mirrors and configs.….tls, and say the same in hosts.toml",
			"config_path is set and registry.mirrors (or configs.….tls) is in the way: containerd does not load its CRI plugin with both")
		return
	case now.mirrors:
		c.inspectMirrors(tree, o, in)
		return
	case len(now.roots) == 0:
		in.trap(checkPath, o.installing()+", then restart containerd", "config_path is empty in %s: containerd reads no hosts.toml", main)
		return
	case now.ignored:
		in.trap(checkPath, o.installing()+", then restart containerd",
			"config_path is a list, %s: containerd %s silently ignores that, and with it every mirror", strings.Join(now.roots, ":"), c.release)
		return
	default:
		in.ok(checkPath, "%s", strings.Join(now.roots, ":"))
	}
	inspectHosts(tree, now.roots, o, in)
}

// inspectMirrors looks at the way of old.
func (c *containerdConfig) inspectMirrors(tree Tree, o Options, in *Inspection) {
	for name, entry := range table(c.registry(), "registry", "mirrors") {
		m, _ := entry.(map[string]any)
		list, _ := m["endpoint"].([]any)
		if slices.ContainsFunc(list, func(e any) bool { s, _ := e.(string); return sameURL(s, o.Mirror) }) {
			if name == "*" {
				name = Everything
			}
			in.Registries = append(in.Registries, name)
		}
	}
	slices.Sort(in.Registries)
	for _, r := range o.Registries {
		if !slices.Contains(in.Registries, r) && !slices.Contains(in.Registries, Everything) {
			in.trap(checkPath, o.installing("--registry "+r), "registry.mirrors is set and has no endpoint %s for %s", o.Mirror, r)
		}
	}
	if len(in.Registries) > 0 {
		in.ok(checkPath, "registry.mirrors names the mirror for %s", strings.Join(in.Registries, ", "))
		return
	}
	ignored := ""
	if named := naming(tree, usualRoots, o.Mirror); len(named) > 0 {
		ignored = ", and the hosts.toml below " + named[0].root + " are not read"
	}
	in.trap(checkPath, o.installing()+", which puts the mirror into registry.mirrors, then restart containerd",
		"registry.mirrors is in the way: it does not name the mirror%s", ignored)
}

// usualRoots are where hosts.toml are found, right or wrong.
var usualRoots = []string{
	defaultHosts, "/etc/docker/certs.d", "/etc/containerd/hosts.d", "/etc/cri/conf.d/hosts",
	"/var/lib/rancher/k3s/agent/etc/containerd/certs.d", "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
}

// named is a hosts.toml.
type named struct {
	root, file, registry string
	*hostsFile
}

// hostsBelow returns the hosts.toml below the roots that can be read, and says
// which cannot.
func hostsBelow(tree Tree, roots []string) (all []named, broken map[string]error) {
	broken = map[string]error{}
	for _, root := range roots {
		names, _ := tree.ReadDir(root) // none: there is no file either
		for _, name := range names {
			file := path.Join(root, name, "hosts.toml")
			raw, err := read(tree, file)
			if len(raw) == 0 && err == nil {
				continue
			}
			var f *hostsFile
			if err == nil {
				f, err = parseHosts(raw)
			}
			if err != nil {
				broken[file] = err
				continue
			}
			all = append(all, named{root, file, registryOf(name), f})
		}
	}
	return all, broken
}

// registryOf returns the registry that a directory is for.
func registryOf(dir string) string {
	if rest, ok := strings.CutSuffix(dir, "_"); ok {
		if i := strings.LastIndexByte(rest, '_'); i > 0 {
			return rest[:i] + ":" + rest[i+1:]
		}
	}
	return dir
}

func naming(tree Tree, roots []string, mirror string) []named {
	all, _ := hostsBelow(tree, roots)
	return slices.DeleteFunc(all, func(n named) bool { return n.index(mirror) < 0 })
}

func inspectHosts(tree Tree, roots []string, o Options, in *Inspection) {
	all, broken := hostsBelow(tree, roots)
	for file, err := range broken {
		in.trap(checkHosts, "correct the file", "%s cannot be read, and containerd ignores it: %v", file, err)
	}
	for _, n := range all {
		if n.index(o.Mirror) < 0 {
			continue
		}
		in.Registries = append(in.Registries, n.registry)
		for _, text := range append(n.problems(o.Release), n.misuses(o.Mirror)...) {
			in.trap(checkHosts, "correct the file", "%s: %s", n.file, text)
		}
	}
	if len(in.Registries) == 0 && len(broken) == 0 {
		inspectUnnamed(tree, all, roots, o, in)
		return
	}
	for _, r := range o.Registries {
		file := hostsPath(tree, roots, r)
		if i := slices.IndexFunc(all, func(n named) bool { return n.file == file }); broken[file] == nil && (i < 0 || all[i].index(o.Mirror) < 0) {
			in.trap(checkHosts, o.installing("--registry "+r), "%s, which holds for %s, does not name the mirror %s", file, r, o.Mirror)
		}
	}
	if !slices.ContainsFunc(in.Findings, func(f Finding) bool { return f.Trap }) {
		in.ok(checkHosts, "the mirror is named for %s", strings.Join(in.Registries, ", "))
	}
}

// inspectUnnamed says why no hosts.toml that is read names the mirror.
func inspectUnnamed(tree Tree, all []named, roots []string, o Options, in *Inspection) {
	for _, n := range all {
		for _, h := range n.hosts {
			if u, err := url.Parse(h.url); err == nil && u.Scheme == "http" && isLoopback(u.Hostname()) {
				in.trap(checkHosts, o.installing(),
					"%s names %s, and the mirror is %s: a wrong port or address", n.file, h.url, o.Mirror)
				return
			}
		}
	}
	elsewhere := naming(tree, slices.DeleteFunc(slices.Clone(usualRoots), func(r string) bool { return slices.Contains(roots, r) }), o.Mirror)
	if len(elsewhere) > 0 {
		in.trap(checkPath, o.installing(), "config_path is %s, and the hosts.toml that name the mirror are elsewhere, below %s",
			strings.Join(roots, ":"), elsewhere[0].root)
		return
	}
	in.trap(checkHosts, o.installing(), "no hosts.toml below %s names the mirror %s", strings.Join(roots, ":"), o.Mirror)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// misuses says what in the file works against the mirror.
func (f *hostsFile) misuses(mirror string) []string {
	var found []string
	i := f.index(mirror)
	h := f.hosts[i]
	doc := table(f.toml.doc, "host", h.url)
	for _, need := range []string{"pull", "resolve"} {
		if len(h.capabilities) > 0 && !slices.Contains(h.capabilities, need) {
			found = append(found, fmt.Sprintf("the mirror lacks the capability %q", need))
		}
	}
	if strings.HasPrefix(mirror, "http://") && !strings.HasSuffix(mirror, ":80") {
		for _, key := range []string{"skip_verify", "ca", "client"} {
			if doc[key] != nil {
				found = append(found, fmt.Sprintf("the mirror has %q: containerd then tries HTTPS first, which the mirror does not speak", key))
			}
		}
	}
	for name := range table(doc, "header") {
		if strings.EqualFold(name, "authorization") {
			found = append(found, "the mirror has a header Authorization: it would go to every registry")
		}
	}
	if server := text(f.toml.doc, "server"); sameURL(server, mirror) {
		found = append(found, "server is the mirror: without it, nothing is left to pull from")
	}
	return found
}
