package runtimes

import (
	"fmt"
	"slices"
)

// planBuildKit plans for buildkitd, whose mirrors are hosts without a scheme.
func planBuildKit(tree Tree, o Options, p *Plan) error {
	if err := o.onlyNamed("buildkitd.toml"); err != nil {
		return err
	}
	mirror, err := o.mirror()
	if err != nil {
		return err
	}
	file := "/etc/buildkit/buildkitd.toml"
	if o.Config != "" {
		file = o.Config
	}
	before, err := read(tree, file)
	if err != nil {
		return err
	}
	if before == nil {
		p.found("buildkitd without %s", file)
	} else {
		p.found("buildkitd with %s", file)
	}
	f, err := parseTOML(before)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, registry := range o.Registries {
		list, _ := at(f.doc, "registry", registry, "mirrors").([]any)
		if slices.Contains(list, any(mirror.Host)) {
			continue
		}
		if f, err = f.prepend(mirror.Host, "registry", registry, "mirrors"); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if mirror.Scheme == "http" && at(f.doc, "registry", mirror.Host, "http") != true {
		if f, err = f.set(true, "registry", mirror.Host, "http"); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	p.change(Change{Path: file, Before: before, After: f.raw, Restart: true, What: "puts the mirror first for each registry"})
	return nil
}
