package runtimes

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"

	"github.com/shoalproject/shoal/registry"
)

const (
	registriesConf = "/etc/containers/registries.conf"
	registriesDir  = "/etc/containers/registries.conf.d"
	registriesOwn  = registriesDir + "/shoal.conf"
)

// planCRIO plans for CRI-O, podman, buildah and skopeo, which read the same
// files. A drop-in that names a registry replaces what files before it say of
// that registry, so ours repeats that, with the mirror in front.
func planCRIO(tree Tree, o Options, p *Plan) error {
	if err := o.onlyNamed("registries.conf"); err != nil {
		return err
	}
	mirror, err := o.mirror()
	if err != nil {
		return err
	}
	main, own := crioFiles(o)
	entries, files, err := allRegistryEntries(tree, o, own)
	if err != nil {
		return err
	}
	for name, file := range files {
		if file > own && file != main && slices.Contains(o.Registries, name) {
			p.warn("%s comes later and says what holds for %s: put the mirror there", file, name)
		}
	}
	p.found("%s with its drop-ins", main)
	c := Change{Path: own, What: fmt.Sprintf("asks the mirror first for %s", plural(len(o.Registries), "registry")),
		Restart: isDir(tree, "/etc/crio")}
	if c.Before, err = read(tree, own); err != nil {
		return err
	}
	if c.Before != nil {
		return fmt.Errorf("%s is there already and not from here: move it away", own)
	}
	c.After, err = renderRegistries(o, mirror, entries)
	if err != nil {
		return err
	}
	p.change(c)
	return nil
}

// crioFiles returns the main file and the drop-in that is ours.
func crioFiles(o Options) (main, own string) {
	main = registriesConf
	if o.Config != "" {
		main = o.Config
	}
	return main, path.Join(path.Dir(main), "registries.conf.d", path.Base(registriesOwn))
}

// allRegistryEntries returns the entries in force by their prefix, and the
// file that each is from, as if the file without did not exist.
func allRegistryEntries(tree Tree, o Options, without string) (entries map[string]map[string]any, files map[string]string, err error) {
	main, own := crioFiles(o)
	dropIns, err := glob(tree, path.Join(path.Dir(own), "*.conf"))
	if err != nil {
		return nil, nil, err
	}
	entries, files = map[string]map[string]any{}, map[string]string{}
	for _, file := range append([]string{main}, dropIns...) {
		if file == without {
			continue
		}
		found, err := registryEntries(tree, file)
		if err != nil {
			return nil, nil, err
		}
		for name, e := range found {
			entries[name], files[name] = e, file
		}
	}
	return entries, files, nil
}

// registryEntries returns the [[registry]] tables of a file by their prefix.
func registryEntries(tree Tree, file string) (map[string]map[string]any, error) {
	raw, err := read(tree, file)
	if err != nil {
		return nil, err
	}
	f, err := parseTOML(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if f.doc["registries"] != nil {
		return nil, fmt.Errorf("%s has the format of version 1, beside which no drop-in may be: move it to version 2 first", file)
	}
	entries := map[string]map[string]any{}
	list, _ := f.doc["registry"].([]any)
	for _, one := range list {
		e, _ := one.(map[string]any)
		name := text(e, "prefix")
		if name == "" {
			name = text(e, "location")
		}
		entries[name] = e
	}
	return entries, nil
}

// mirrorLocation returns where the mirror has the images of a registry, or of
// some of its repositories. It is part of image names, in which only the mirror
// itself may have a port.
func mirrorLocation(mirror *url.URL, name string) (string, error) {
	host, rest, deeper := strings.Cut(name, "/")
	prefix, err := registry.PathPrefix(host)
	if err != nil {
		return "", err
	}
	location := mirror.Host + "/" + prefix
	if deeper {
		location += "/" + rest
	}
	return location, checkLocation(location)
}

// checkLocation returns why a location of registries.conf cannot be part of an
// image name: containers/image then fails every pull of the registry, without
// asking the next location.
func checkLocation(location string) error {
	if _, err := reference.ParseNamed(location + "/x/x"); err != nil {
		return fmt.Errorf("location %q cannot be part of an image name: %w", location, err)
	}
	return nil
}

func renderRegistries(o Options, mirror *url.URL, entries map[string]map[string]any) ([]byte, error) {
	out := []byte(ownFile)
	for _, name := range o.Registries {
		e := maps.Clone(entries[name])
		if e == nil {
			e = map[string]any{"location": name}
		}
		e["prefix"] = name
		location, err := mirrorLocation(mirror, name)
		if err != nil {
			return nil, err
		}
		first := map[string]any{"location": location}
		if mirror.Scheme == "http" {
			first["insecure"] = true
		}
		others, _ := e["mirror"].([]any)
		e["mirror"] = append([]any{first}, others...)
		b, err := toml.Marshal(map[string]any{"registry": []any{e}})
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", name, err)
		}
		out = append(append(out, '\n'), b...)
	}
	return out, nil
}
