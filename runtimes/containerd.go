package runtimes

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// containerdPlaces are where distributions keep containerd's main file; the
// first that exists is taken.
var containerdPlaces = []string{
	"/etc/containerd/config.toml",
	"/etc/cri/containerd.toml", // Talos
	"/etc/k0s/containerd.toml", // k0s
	"/var/snap/microk8s/current/args/containerd.toml",
}

// defaultHosts is where containerd's own default points, and its clients look.
const defaultHosts = "/etc/containerd/certs.d"

// maxImports bounds the files that a containerd configuration is made of.
const maxImports = 64

// Sections with the registry settings, by version of the configuration.
const (
	sectionV1 = "cri"
	sectionV2 = "io.containerd.grpc.v1.cri"
	sectionV3 = "io.containerd.cri.v1.images"
)

// containerdConfig is what containerd makes of its main file and its imports.
type containerdConfig struct {
	main    string
	release Release
	files   []*containerdFile // as they are loaded; later ones win
	version int
}

type containerdFile struct {
	path string
	*tomlFile
}

// section returns the file's table of the plugin with the registry settings.
func (c *containerdConfig) section(f *containerdFile) (map[string]any, bool) {
	m, ok := at(f.doc, "plugins", c.sectionName()).(map[string]any)
	return m, ok
}

// sectionName is the name of that plugin in this configuration.
func (c *containerdConfig) sectionName() string {
	switch {
	case c.version >= 3:
		return sectionV3
	case c.version == 2:
		return sectionV2
	}
	for _, f := range c.files {
		if at(f.doc, "plugins", sectionV2) != nil {
			return sectionV2
		}
	}
	return sectionV1
}

// loadContainerd reads the main file and what it imports, as containerd does.
func loadContainerd(tree Tree, main string, release Release) (*containerdConfig, error) {
	c := &containerdConfig{main: main, release: release}
	pending, seen := []string{main}, map[string]bool{}
	for len(pending) > 0 {
		file := pending[0]
		pending = pending[1:]
		if seen[file] {
			continue
		}
		seen[file] = true
		if len(seen) > maxImports {
			return nil, fmt.Errorf("%s: it imports more than %d files", main, maxImports)
		}
		raw, err := read(tree, file)
		if err != nil {
			return nil, err
		}
		if raw == nil {
			if file == main {
				continue // containerd runs with its defaults
			}
			return nil, fmt.Errorf("%s imports %s, which does not exist: containerd does not start", main, file)
		}
		t, err := parseTOML(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		c.files = append(c.files, &containerdFile{file, t})
		if v, _ := t.doc["version"].(int64); v > 0 {
			c.version = int(v)
		}
		imports, _ := t.doc["imports"].([]any)
		for _, i := range imports {
			pattern, _ := i.(string)
			if pattern = path.Clean(pattern); !path.IsAbs(pattern) {
				pattern = path.Join(path.Dir(file), pattern)
			}
			matches := []string{pattern}
			if strings.Contains(pattern, "*") {
				if matches, err = glob(tree, pattern); err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
			}
			pending = append(pending, matches...)
		}
	}
	if len(c.files) == 0 {
		c.version = 2 // which every release reads
		if release.is(2, 0) {
			c.version = 3
		}
	}
	return c, nil
}

// registry returns the registry settings in force. Containerd 2.x merges the
// files of a configuration key by key, where an empty value is none; in 1.x the
// last file that has the plugin's table at all replaces that of the others.
func (c *containerdConfig) registry() map[string]any {
	merged := map[string]any{}
	for _, f := range c.files {
		section, ok := c.section(f)
		if !ok {
			continue
		}
		if !c.mergesKeys() {
			merged = map[string]any{}
		}
		mergeInto(merged, section)
	}
	return merged
}

// mergesKeys reports whether this is the 2.x line, as far as can be told.
func (c *containerdConfig) mergesKeys() bool { return c.release.is(2, 0) || c.version >= 3 }

func mergeInto(to, from map[string]any) {
	for k, v := range from {
		switch v := v.(type) {
		case map[string]any:
			sub, ok := to[k].(map[string]any)
			if !ok {
				sub = map[string]any{}
				to[k] = sub
			}
			mergeInto(sub, v)
		default:
			if v != "" || to[k] == nil {
				to[k] = v
			}
		}
	}
}

// target returns the file to edit: the last one with the plugin's table, whose
// word counts in every release, else the main file.
func (c *containerdConfig) target() *containerdFile {
	for _, f := range slices.Backward(c.files) {
		if _, ok := c.section(f); ok {
			return f
		}
	}
	if len(c.files) > 0 {
		return c.files[0]
	}
	f, err := parseTOML([]byte{})
	if err != nil {
		panic(err) // an empty document is one
	}
	return &containerdFile{c.main, f}
}

// criDisabled reports whether the plugin that the kubelet uses is switched
// off, as in the package that Docker ships.
func (c *containerdConfig) criDisabled() bool {
	for _, f := range c.files {
		list, _ := f.doc["disabled_plugins"].([]any)
		for _, name := range list {
			if name == "cri" || name == sectionV2 || name == sectionV3 {
				return true
			}
		}
	}
	return false
}

// pulls says what containerd goes by when it pulls for the kubelet.
type pulls struct {
	// path is config_path as written.
	path string
	// roots are the directories of it that are looked at.
	roots []string
	// ignored says that roots are ignored: a list of directories, where one
	// is wanted.
	ignored bool
	// mirrors says that registry.mirrors, the way of old, is in force, and
	// config_path must stay empty.
	mirrors bool
	// refused says that both are set: the CRI plugin does not load then.
	refused bool
}

func (c *containerdConfig) pulls() pulls {
	section := c.registry()
	p := pulls{path: text(section, "registry", "config_path")}
	p.mirrors = len(table(section, "registry", "mirrors")) > 0
	for _, one := range table(section, "registry", "configs") {
		if m, ok := one.(map[string]any); ok && m["tls"] != nil && !c.mergesKeys() {
			p.mirrors = true
		}
	}
	p.refused = p.mirrors && p.path != ""
	for dir := range strings.SplitSeq(p.path, ":") {
		if dir != "" {
			p.roots = append(p.roots, path.Clean(dir))
		}
	}
	if p.path == "" && !p.mirrors && c.release.is(2, 2) {
		p.roots = []string{defaultHosts, "/etc/docker/certs.d"} // built in
	}
	p.ignored = len(p.roots) > 1 && c.release.mayBe(2, 1) && (c.release.Major > 0 || c.version >= 3) && !usesLocalPull(section)
	return p
}

// usesLocalPull reports whether settings of the CRI turn containerd 2.1 and
// later back to pulling by itself instead of by the transfer service.
func usesLocalPull(section map[string]any) bool {
	yes := func(key string) bool { b, _ := section[key].(bool); return b }
	annotations, set := section["disable_snapshot_annotations"].(bool)
	downloads, limited := section["max_concurrent_downloads"].(int64)
	if c := table(section, "containerd"); c != nil { // where version 2 has some of them
		if b, ok := c["disable_snapshot_annotations"].(bool); ok {
			annotations, set = b, true
		}
		if b, _ := c["discard_unpacked_layers"].(bool); b {
			return true
		}
	}
	return yes("use_local_image_pull") || yes("discard_unpacked_layers") || yes("image_pull_with_sync_fs") ||
		set && !annotations || limited && downloads != 3 ||
		len(table(section, "registry", "configs")) > 0 || len(table(section, "registry", "auths")) > 0
}

// containerdMain returns the main file to go by.
func containerdMain(tree Tree, o Options) string {
	if o.Config != "" {
		return o.Config
	}
	for _, file := range containerdPlaces {
		if isFile(tree, file) {
			return file
		}
	}
	return containerdPlaces[0]
}

func planContainerd(tree Tree, o Options, p *Plan) error {
	main := containerdMain(tree, o)
	c, err := loadContainerd(tree, main, o.Release)
	if err != nil {
		return err
	}
	c.describe(p)
	now := c.pulls()
	switch {
	case c.criDisabled():
		p.warn("the CRI plugin is in disabled_plugins: only clients that read %s by themselves will ask the mirror, such as nerdctl", defaultHosts)
		return planHosts(tree, o, []string{defaultHosts}, p)
	case now.refused:
		return fmt.Errorf("%s: config_path and registry.mirrors (or configs.….tls) are both set, and containerd's CRI plugin does not load with both: remove one", main)
	case now.mirrors:
		return c.planMirrors(o, p)
	case len(now.roots) == 0 || now.ignored || now.path == "":
		if now.roots == nil {
			now.roots = []string{defaultHosts}
		}
		if err := c.planConfigPath(now, p); err != nil {
			return err
		}
		for _, lost := range now.roots[1:] {
			if names, _ := tree.ReadDir(lost); len(names) > 0 && now.path != "" {
				p.warn("%s was in config_path and is not any more: containerd looked at neither", lost)
			}
		}
		now.roots = now.roots[:1]
	default:
		p.found("config_path is %s", now.path)
	}
	return planHosts(tree, o, now.roots, p)
}

func (c *containerdConfig) describe(p *Plan) {
	release := ""
	if c.release.Major > 0 {
		release = " " + c.release.String()
	}
	if len(c.files) == 0 {
		p.found("containerd%s, which runs with its defaults: there is no %s", release, c.main)
		return
	}
	imports := ""
	if n := len(c.files) - 1; n > 0 {
		imports = ", which imports " + plural(n, "file")
	}
	p.found("containerd%s with %s (version %d)%s", release, c.main, max(c.version, 1), imports)
}

// planConfigPath sets config_path to the first of the roots.
func (c *containerdConfig) planConfigPath(now pulls, p *Plan) error {
	switch {
	case now.ignored && now.path != "":
		p.found("config_path is the list %s, which containerd %s silently ignores", now.path, c.release)
	case now.ignored:
		p.found("config_path is not set, and containerd %s silently ignores its own default, a list", c.release)
	default:
		p.found("config_path is not set: containerd reads no hosts.toml yet")
	}
	f := c.target()
	change := Change{Path: f.path, Before: f.raw, Restart: true,
		What: fmt.Sprintf("sets config_path to %s", now.roots[0])}
	if len(c.files) == 0 {
		change.Before = nil
		head, err := parseTOML(fmt.Appendf(nil, "version = %d\n", c.version))
		if err != nil {
			return err
		}
		f = &containerdFile{c.main, head}
	}
	g, err := f.set(now.roots[0], "plugins", c.sectionName(), "registry", "config_path")
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	change.After = g.raw
	p.change(change)
	return nil
}

// planMirrors puts the mirror into registry.mirrors. That way is deprecated, but
// to set config_path beside it would keep the CRI plugin from loading.
func (c *containerdConfig) planMirrors(o Options, p *Plan) error {
	f := c.target()
	p.found("registry.mirrors (or configs.….tls) is set, the way of old, which rules out config_path: the mirror is put in there")
	mirrors := table(c.registry(), "registry", "mirrors")
	edited := f.tomlFile
	done := map[string]bool{}
	for _, registry := range o.Registries {
		name := registry
		if mirrors[name] == nil && (mirrors["*"] != nil || name == Everything) {
			name = "*"
		}
		if done[name] {
			continue
		}
		done[name] = true
		key := []string{"plugins", c.sectionName(), "registry", "mirrors", name, "endpoint"}
		list, _ := at(mirrors, name, "endpoint").([]any)
		if slices.ContainsFunc(list, func(e any) bool { s, _ := e.(string); return sameURL(s, o.Mirror) }) {
			continue
		}
		if len(list) > 0 && at(f.doc, key...) == nil {
			return fmt.Errorf("%s: the mirrors of %s are in another file: keep registry.mirrors in one", f.path, name)
		}
		var err error
		if edited, err = edited.prepend(o.Mirror, key...); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	p.change(Change{Path: f.path, Before: f.raw, After: edited.raw, Restart: true, What: "puts the mirror first in registry.mirrors"})
	return nil
}
