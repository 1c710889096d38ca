package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
)

// planDocker plans for Docker, which has mirrors of Docker Hub alone.
func planDocker(tree Tree, o Options, p *Plan) error {
	file := "/etc/docker/daemon.json"
	if o.Config != "" {
		file = o.Config
	}
	if !slices.Contains(o.Registries, "docker.io") && !slices.Contains(o.Registries, Everything) {
		return errors.New("docker can have a mirror of docker.io alone, which is not among the registries")
	}
	before, err := read(tree, file)
	if err != nil {
		return err
	}
	if before == nil {
		p.found("docker without %s", file)
	} else {
		p.found("docker with %s", file)
	}
	p.found("docker has mirrors of docker.io alone; other registries are asked directly")
	c := Change{Path: file, Before: before, Restart: true, What: "puts the mirror first in registry-mirrors"}
	if c.After, err = withDockerMirror(before, o.Mirror); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	p.change(c)
	return nil
}

const dockerKey = "registry-mirrors"

// withDockerMirror returns a daemon.json with the mirror first.
func withDockerMirror(raw []byte, mirror string) ([]byte, error) {
	item := fmt.Sprintf("%q", mirror)
	if len(bytes.TrimSpace(raw)) == 0 {
		return fmt.Appendf(nil, "{\n  %q: [%s]\n}\n", dockerKey, item), nil
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	list, isList := doc[dockerKey].([]any)
	if slices.ContainsFunc(list, func(e any) bool { s, _ := e.(string); return sameURL(s, mirror) }) {
		return raw, nil
	}
	open := bytes.IndexByte(raw, '{') + 1
	var after []byte
	switch {
	case isList:
		start, err := jsonValue(raw, dockerKey)
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			item += ", "
		}
		after = slices.Concat(raw[:start+1], []byte(item), raw[start+1:])
	case doc[dockerKey] != nil:
		return nil, fmt.Errorf("%s is no list", dockerKey)
	default:
		// In the layout of the first key.
		rest := raw[open:]
		space := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t\r\n"))]
		pair := fmt.Appendf(nil, "%s%q: [%s]", space, dockerKey, item)
		if len(doc) > 0 {
			pair = append(pair, ',')
		}
		after = slices.Concat(raw[:open], pair, rest)
	}
	var got map[string]any
	if err := json.Unmarshal(after, &got); err != nil {
		return nil, fmt.Errorf("%s cannot be put in: %w", dockerKey, err)
	}
	doc[dockerKey] = append([]any{mirror}, list...)
	if !reflect.DeepEqual(doc, got) {
		return nil, fmt.Errorf("%s cannot be put in without changing more", dockerKey)
	}
	return after, nil
}

// jsonValue returns where the value of a top-level key starts.
func jsonValue(raw []byte, key string) (int, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return 0, err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0, err
		}
		if name == key {
			rest := raw[d.InputOffset():]
			return len(raw) - len(bytes.TrimLeft(rest, " \t\r\n:")), nil
		}
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("there is no %s", key)
}
