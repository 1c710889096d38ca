package runtimes

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// hostsFile is a hosts.toml as containerd reads it.
type hostsFile struct {
	toml *tomlFile
	// hosts are asked in this order, before the server.
	hosts []host
}

type host struct {
	url          string
	capabilities []string // none: all
}

func parseHosts(raw []byte) (*hostsFile, error) {
	t, err := parseTOML(raw)
	if err != nil {
		return nil, err
	}
	f := &hostsFile{toml: t}
	for _, table := range t.tables {
		// The order is that of the tables, and of [host.X.header] and the
		// like the first one counts.
		if len(table.key) < 2 || table.key[0] != "host" || slices.ContainsFunc(f.hosts, func(h host) bool { return h.url == table.key[1] }) {
			continue
		}
		h := host{url: table.key[1]}
		list, _ := at(t.doc, "host", h.url, "capabilities").([]any)
		for _, c := range list {
			h.capabilities = append(h.capabilities, fmt.Sprint(c))
		}
		f.hosts = append(f.hosts, h)
	}
	return f, nil
}

// problems says why containerd of that release would not do what the file
// says, in words that follow the file's name.
func (f *hostsFile) problems(r Release) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	hosts := table(f.toml.doc, "host")
	if len(f.hosts) == 0 && !r.is(2, 0) && len(hosts) == 0 {
		say("has no [host.\"…\"] table, and containerd 1.x then ignores the whole file")
	}
	for url := range hosts {
		if r.mayBe(2, 0) && !slices.ContainsFunc(f.hosts, func(h host) bool { return h.url == url }) {
			say("names %s in an inline table, which containerd 2.x does not see: write it as [host.%q]", url, url)
		}
	}
	known := []string{"pull", "resolve", "push"}
	if r.is(2, 2) {
		known = append(known, "referrers")
	}
	check := func(where string, doc map[string]any) {
		list, _ := doc["capabilities"].([]any)
		for _, c := range list {
			if s := fmt.Sprint(c); !slices.Contains(known, strings.ToLower(s)) {
				say("%s has capability %q, which containerd %s does not know: it ignores the whole file", where, s, r)
			}
		}
		for _, key := range []string{"ca", "client"} {
			switch doc[key].(type) {
			case nil, string, []any:
			default:
				say("%s has a %q that is neither a string nor a list: containerd ignores the whole file", where, key)
			}
		}
		if _, ok := doc["header"].(map[string]any); doc["header"] != nil && !ok {
			say("%s has a header that is no table: containerd ignores the whole file", where)
		}
	}
	check("the top level", f.toml.doc)
	for _, h := range f.hosts {
		check("host "+h.url, table(f.toml.doc, "host", h.url))
	}
	return found
}

// index returns the place of a mirror among the hosts, or -1.
func (f *hostsFile) index(mirror string) int {
	return slices.IndexFunc(f.hosts, func(h host) bool { return sameURL(h.url, mirror) })
}

// sameURL compares base URLs of registries as containerd uses them.
func sameURL(a, b string) bool {
	clean := func(s string) string { return strings.TrimSuffix(strings.TrimSuffix(s, "/"), "/v2") }
	return clean(a) == clean(b)
}

const (
	ownFile = "# Written by \"shoal containerd install\", removed by \"shoal containerd uninstall\".\n" +
		"# The mirror is asked first, the registry itself when it cannot help.\n"
	ownHost = "# Added by \"shoal containerd install\": asked before the others.\n"
)

// hostBlock is the table of the mirror. The two capabilities are all that
// every release knows; one that is unknown would cost the whole file.
func hostBlock(mirror string) string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
}

// withMirror returns the file with the mirror before the other hosts, and how
// many others there are. A file that has it somewhere stays as it is.
func (f *hostsFile) withMirror(mirror string) (raw []byte, others int, err error) {
	if f.index(mirror) >= 0 {
		return f.toml.raw, len(f.hosts) - 1, nil
	}
	raw = f.toml.raw
	var text []byte
	if len(f.toml.tables) == 0 {
		text = slices.Concat(raw, []byte(gapBefore(raw)+ownHost+hostBlock(mirror)))
	} else {
		first := aboveComments(raw, f.toml.tables[0].at)
		text = slices.Concat(raw[:first], []byte(ownHost+hostBlock(mirror)+"\n"), raw[first:])
	}
	g, err := parseHosts(text)
	if err != nil || g.index(mirror) != 0 || !slices.EqualFunc(g.hosts[1:], f.hosts, func(a, b host) bool { return a.url == b.url }) {
		return nil, 0, fmt.Errorf("the mirror cannot be put in: write the hosts of this file as [host.\"…\"] tables")
	}
	return text, len(f.hosts), nil
}

// aboveComments returns the start of the comment lines right above a line.
func aboveComments(raw []byte, line int) int {
	for line > 0 {
		above := bytes.LastIndexByte(raw[:line-1], '\n') + 1
		if !bytes.HasPrefix(bytes.TrimSpace(raw[above:line]), []byte("#")) {
			break
		}
		line = above
	}
	return line
}

// hostDirs are the directories in which containerd looks for a registry, in
// its order: HOST_PORT_, HOST:PORT, _default.
func hostDirs(root, registry string) []string {
	dirs := []string{path.Join(root, registry), path.Join(root, Everything)}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		dirs = slices.Insert(dirs, 0, path.Join(root, registry[:i]+"_"+registry[i+1:]+"_"))
	}
	return slices.Compact(dirs)
}

// hostsPath returns the hosts.toml that holds for a registry: in the first of
// the directories that exists, or else in a new one.
func hostsPath(tree Tree, roots []string, registry string) string {
	for _, root := range roots {
		for _, dir := range hostDirs(root, registry) {
			if isDir(tree, dir) {
				return path.Join(dir, "hosts.toml")
			}
		}
	}
	return path.Join(roots[0], registry, "hosts.toml")
}

// certificateKeys are the top-level keys for a new hosts.toml in a directory
// that so far held certificates alone, laid out as Docker does: containerd
// looks at those only where there is no hosts.toml.
func certificateKeys(tree Tree, dir string) string {
	names, err := tree.ReadDir(dir)
	if err != nil {
		return "" // it is to be made
	}
	var cas, clients []string
	for _, name := range names {
		file := fmt.Sprintf("%q", path.Join(dir, name))
		if strings.HasSuffix(name, ".crt") {
			cas = append(cas, file)
		}
		if base, ok := strings.CutSuffix(name, ".cert"); ok {
			if slices.Contains(names, base+".key") {
				file = fmt.Sprintf("[%s, %q]", file, path.Join(dir, base+".key"))
			}
			clients = append(clients, file)
		}
	}
	var b strings.Builder
	if cas != nil {
		fmt.Fprintf(&b, "ca = [%s]\n", strings.Join(cas, ", "))
	}
	if clients != nil {
		fmt.Fprintf(&b, "client = [%s]\n", strings.Join(clients, ", "))
	}
	if b.Len() > 0 {
		b.WriteString("\n")
	}
	return b.String()
}

// planHosts plans the hosts.toml of each registry below the roots of
// containerd's config_path.
func planHosts(tree Tree, o Options, roots []string, p *Plan) error {
	done := map[string]bool{}
	for _, registry := range o.Registries {
		file := hostsPath(tree, roots, registry)
		if done[file] {
			continue
		}
		done[file] = true
		c, err := planHostsFile(tree, o, file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if path.Base(path.Dir(file)) == Everything && registry != Everything {
			p.found("%s governs registries without a file of their own: it is the one to change", file)
		}
		p.change(c)
	}
	for _, root := range roots {
		names, _ := tree.ReadDir(root) // none: it is to be made
		for _, name := range names {
			if file := path.Join(root, name, "hosts.toml"); slices.Contains(o.Registries, Everything) && !done[file] && isFile(tree, file) {
				p.warn("%s stays as it is: to ask the mirror for %s too, name it with --registry", file, name)
			}
		}
	}
	return nil
}

func planHostsFile(tree Tree, o Options, file string) (Change, error) {
	before, err := read(tree, file)
	if err != nil {
		return Change{}, err
	}
	c := Change{Path: file, Before: before}
	if len(before) == 0 {
		keys := certificateKeys(tree, path.Dir(file))
		c.What = "asks the mirror first, then the registry"
		if keys != "" {
			c.What += ", with the certificates that lie beside it"
		}
		c.After = []byte(ownFile + keys + hostBlock(o.Mirror))
		return c, nil
	}
	f, err := parseHosts(before)
	if err != nil {
		return Change{}, fmt.Errorf("containerd ignores it as it stands: %w", err)
	}
	var others int
	if c.After, others, err = f.withMirror(o.Mirror); err != nil {
		return Change{}, err
	}
	c.What = "asks the mirror first"
	switch {
	case others == 1:
		c.What += ", then the host it had"
	case others > 1:
		c.What += fmt.Sprintf(", then the %d hosts it had", others)
	}
	return c, nil
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	if stem, ok := strings.CutSuffix(word, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, word)
}
