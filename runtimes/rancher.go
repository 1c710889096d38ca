package runtimes

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// planRancher plans for k3s and RKE2. They write containerd's files anew at
// every start, from registries.yaml; what is put into those files directly
// would not last.
func planRancher(name string) func(Tree, Options, *Plan) error {
	return func(tree Tree, o Options, p *Plan) error {
		file := rancherFile(name, o)
		before, err := read(tree, file)
		if err != nil {
			return err
		}
		if before == nil {
			p.found("%s without %s", name, file)
		} else {
			p.found("%s with %s", name, file)
		}
		c := Change{Path: file, Before: before, After: before, Restart: true, What: "puts the mirror first in mirrors"}
		if len(bytes.TrimSpace(before)) == 0 {
			c.After = append(slices.Clone(before), ownFile...)
		}
		done := map[string]bool{}
		for _, registry := range o.Registries {
			if registry == Everything {
				registry = "*"
			}
			after, host, err := withEndpoint(c.After, registry, o.Mirror)
			if err != nil {
				return fmt.Errorf("%s: mirrors of %s: %w", file, registry, err)
			}
			if host != registry && !done[host] {
				done[host] = true
				p.found("the entry %q of mirrors governs registries without one of their own: it is the one to change", host)
			}
			c.After = after
		}
		p.change(c)
		return nil
	}
}

func rancherFile(name string, o Options) string {
	return cmp.Or(o.Config, "/etc/rancher/"+name+"/registries.yaml")
}

// rancherRegistries returns the registries that have mirrors in a file, none if
// it cannot be read: to say so is for planning.
func rancherRegistries(tree Tree, file string) (names []string) {
	raw, err := read(tree, file)
	if err != nil {
		return nil
	}
	mirrors, err := yamlMirrors(raw)
	if err != nil || mirrors == nil || mirrors.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mirrors.Content); i += 2 {
		name := mirrors.Content[i].Value
		if name == "*" {
			name = Everything
		}
		names = append(names, name)
	}
	return names
}

func restartRancher(name string) func(Tree) []string {
	return func(tree Tree) []string {
		unit := map[string]string{"k3s": "k3s", "rke2": "rke2-server"}[name]
		if !isDir(tree, "/var/lib/rancher/"+name+"/server") {
			unit = name + "-agent"
		}
		return []string{"systemctl", "restart", unit}
	}
}

// withEndpoint returns a registries.yaml in which the endpoints of a registry
// start with the mirror, and the entry that was changed: that of the registry,
// or "*" where there is only that.
func withEndpoint(raw []byte, registry, mirror string) (_ []byte, entry string, err error) {
	mirrors, err := yamlMirrors(raw)
	if err != nil {
		return nil, "", err
	}
	entry = registry
	if yamlValue(mirrors, entry) == nil && yamlValue(mirrors, "*") != nil {
		entry = "*"
	}
	item := fmt.Sprintf("- %q\n", mirror)
	block := func(indent string) string {
		return indent + fmt.Sprintf("%q:\n", entry) + indent + "  endpoint:\n" + indent + "    " + item
	}
	var at int
	var text string
	switch endpoints := yamlValue(yamlValue(mirrors, entry), "endpoint"); {
	case mirrors == nil:
		at, text = len(raw), "mirrors:\n"+block("  ")
		if at > 0 && raw[at-1] != '\n' {
			text = "\n" + text
		}
	case mirrors.Kind != yaml.MappingNode || mirrors.Style == yaml.FlowStyle || len(mirrors.Content) == 0:
		return nil, "", errors.New("want a mapping with a line for each key")
	case yamlValue(mirrors, entry) == nil:
		first := mirrors.Content[0]
		at, text = lineStart(raw, first.Line), block(strings.Repeat(" ", first.Column-1))
	case endpoints == nil:
		key, value := yamlPair(mirrors, entry)
		if value.Tag != "!!null" && (value.Kind != yaml.MappingNode || value.Style == yaml.FlowStyle) {
			return nil, "", errors.New("want a mapping with a line for each key")
		}
		indent := strings.Repeat(" ", key.Column-1) + "  "
		if value.Kind == yaml.MappingNode {
			indent = strings.Repeat(" ", value.Content[0].Column-1)
		}
		at, text = lineStart(raw, key.Line+1), indent+"endpoint:\n"+indent+"  "+item
		if at > 0 && raw[at-1] != '\n' {
			text = "\n" + text
		}
	case endpoints.Kind != yaml.SequenceNode:
		return nil, "", errors.New("endpoint is no list")
	case slices.ContainsFunc(endpoints.Content, func(e *yaml.Node) bool { return sameURL(e.Value, mirror) }):
		return raw, entry, nil
	case endpoints.Style == yaml.FlowStyle:
		at = lineStart(raw, endpoints.Line) + endpoints.Column // after the bracket
		text = fmt.Sprintf("%q", mirror)
		if len(endpoints.Content) > 0 {
			text += ", "
		}
	default:
		first := endpoints.Content[0]
		at = lineStart(raw, first.Line)
		text = string(raw[at:at+bytes.IndexByte(raw[at:], '-')]) + item
	}
	after := slices.Concat(raw[:at], []byte(text), raw[at:])
	return after, entry, onlyEndpointAdded(raw, after, entry, mirror)
}

// onlyEndpointAdded proves that an edit did what it was to do.
func onlyEndpointAdded(before, after []byte, entry, mirror string) error {
	var want, got map[string]any
	if err := yaml.Unmarshal(before, &want); err != nil {
		return err
	}
	if err := yaml.Unmarshal(after, &got); err != nil {
		return err
	}
	if want == nil {
		want = map[string]any{}
	}
	list, _ := at(want, "mirrors", entry, "endpoint").([]any)
	put(want, append([]any{mirror}, list...), []string{"mirrors", entry, "endpoint"})
	if !reflect.DeepEqual(got, want) {
		return errors.New("the mirror cannot be put in without changing more")
	}
	return nil
}

// yamlMirrors returns the value of the key mirrors, or nil.
func yamlMirrors(raw []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	if doc.Kind == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, errors.New("want a mapping")
	}
	return yamlValue(root, "mirrors"), nil
}

// yamlPair returns a key of a mapping and its value, or nil.
func yamlPair(m *yaml.Node, key string) (k, v *yaml.Node) {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

func yamlValue(m *yaml.Node, key string) *yaml.Node {
	_, v := yamlPair(m, key)
	return v
}

// lineStart returns the offset of a line, counted from 1.
func lineStart(raw []byte, line int) int {
	i := 0
	for ; line > 1 && i < len(raw); line-- {
		i = lineEnd(raw, i)
	}
	return i
}
