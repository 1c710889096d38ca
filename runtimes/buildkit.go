package runtimes

import (
	"cmp"
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
	file := buildKitFile(o)
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

func buildKitFile(o Options) string { return cmp.Or(o.Config, "/etc/buildkit/buildkitd.toml") }

// buildKitRegistries returns the registries that have mirrors in a file, none if
// it cannot be read: to say so is for planning.
func buildKitRegistries(tree Tree, file string) (names []string) {
	raw, err := read(tree, file)
	if err != nil {
		return nil
	}
	f, err := parseTOML(raw)
	if err != nil {
		return nil
	}
	for name := range table(f.doc, "registry") {
		if at(f.doc, "registry", name, "mirrors") != nil {
			names = append(names, name)
		}
	}
	return names
}
