package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/registry"
)

// nodeCredentials reads a docker config for two registries, of which one is
// asked in the node's own name.
func nodeCredentials(t *testing.T, file string) *credentials {
	t.Helper()
	cfg := DefaultConfig()
	cfg.NodeName, cfg.DockerConfig, cfg.Auth = "node", file, "node"
	cfg.Registries = []string{"docker.io", "r.example.com", "r.example.com:5000", "deep.r.example.com", "relay.example.com,auth=relay", "open.example.com,auth=open"}
	s, err := cfg.settings()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCredentials(s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func users(t *testing.T, c *credentials, image string) (names []string) {
	t.Helper()
	host, name, _ := strings.Cut(image, "/")
	list, err := c.of(t.Context(), registry.Repository{Host: host, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		names = append(names, one.Username)
	}
	return names
}

func writeFile(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
}

// Keys match as those of a Kubernetes pull secret do, the closest first.
func TestCredentialKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	var auths []string
	for key, user := range map[string]string{
		"r.example.com": "host", "https://r.example.com/v2/": "legacy", "r.example.com/team": "team", "r.example.com/team/app": "app",
		"*.example.com": "glob", "*.example.com/team": "glob-team", "r.ex*ple.com": "part", "r.example.com:5000": "port", "*.com": "short",
		"https://index.docker.io/v1/": "hub", "relay.example.com": "relay", "open.example.com": "never", "other.org": "other",
	} {
		auths = append(auths, fmt.Sprintf(`%q:{"username":%q,"password":"x"}`, key, user))
	}
	writeFile(t, file, `{"auths":{`+strings.Join(auths, ",")+`}}`)
	c := nodeCredentials(t, file)
	for image, want := range map[string]string{
		"r.example.com/x":          "legacy host glob part",
		"r.example.com/team/x":     "team glob-team legacy host glob part",
		"r.example.com/team/app/x": "app team glob-team legacy host glob part",
		"r.example.com:5000/x":     "port",
		"deep.r.example.com/x":     "",
		"docker.io/library/alpine": "hub",
		"relay.example.com/x":      "",
		"open.example.com/x":       "",
	} {
		got := users(t, c, image)
		words := strings.Fields(want)
		// Of equally close ones any order will do.
		if strings.Contains(want, "legacy host") {
			slices.Sort(got)
			slices.Sort(words)
		}
		if !slices.Equal(got, words) {
			t.Errorf("%s: %v, want %v", image, got, words)
		}
	}
	c.cfg.PreheatNodeCredentials = true
	if got := users(t, c, "relay.example.com/x"); !slices.Equal(got, []string{"relay", "glob"}) {
		t.Errorf("for preheats, when told so: %v", got)
	}
	first := users(t, c, "r.example.com/team/app/x")
	if len(first) == 0 || first[0] != "app" || first[1] != "team" || first[2] != "glob-team" {
		t.Errorf("the closest is not the first: %v", first)
	}
}

// Helpers speak for the hosts that name them, a store for all.
func TestCredentialHelpers(t *testing.T) {
	dir := t.TempDir()
	helper := "#!/bin/sh\nread host\necho run >>" + dir + "/runs\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"%s\",\"Secret\":\"s\"}' \"$host\" \"$0:$host\"\n"
	writeFile(t, filepath.Join(dir, "docker-credential-one"), helper)
	writeFile(t, filepath.Join(dir, "docker-credential-all"), helper)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	file := filepath.Join(dir, "config.json")
	writeFile(t, file, `{"credHelpers":{"r.example.com":"one"},"auths":{"r.example.com":{}},"credsStore":"all"}`)
	c := nodeCredentials(t, file)
	for image, want := range map[string]string{
		"r.example.com/x":      dir + "/docker-credential-one:r.example.com",
		"r.example.com:5000/x": dir + "/docker-credential-all:r.example.com:5000",
		"docker.io/x":          dir + "/docker-credential-all:https://index.docker.io/v1/",
	} {
		for range 3 {
			if got := users(t, c, image); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %v, want %s", image, got, want)
			}
		}
	}
	runs, err := os.ReadFile(filepath.Join(dir, "runs"))
	if n := strings.Count(string(runs), "run"); err != nil || n != 3 {
		t.Errorf("helpers were run %d times for three registries", n)
	}
}

// The file is followed, however it is replaced; one that cannot be read
// changes nothing.
func TestCredentialsFollowTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	content := func(user string) string {
		return fmt.Sprintf(`{"auths":{"r.example.com":{"username":%q,"password":"x"}}}`, user)
	}
	writeFile(t, file, content("first"))
	c := nodeCredentials(t, file)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.watch(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	becomes := func(user string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			if got := users(t, c, "r.example.com/x"); len(got) == 1 && got[0] == user {
				return
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("it does not become %q", user)
			}
		}
	}
	becomes("first")
	writeFile(t, file, content("written over"))
	becomes("written over")
	writeFile(t, file, "{half")
	becomes("written over")
	writeFile(t, filepath.Join(dir, "new"), content("renamed"))
	if err := os.Rename(filepath.Join(dir, "new"), file); err != nil {
		t.Fatal(err)
	}
	becomes("renamed")

	// As Kubernetes does with a Secret: the file leads over a link that is
	// replaced.
	for _, user := range []string{"secret", "another"} {
		data := filepath.Join(dir, "data-"+user)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(data, "config.json"), content(user))
		link := filepath.Join(dir, "link")
		if err := os.Symlink(data, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		if user == "secret" {
			if err := os.Symlink("..data/config.json", link); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(link, file); err != nil {
				t.Fatal(err)
			}
		}
		becomes(user)
	}
}

// Nobody's credentials are read where nobody needs them.
func TestNoCredentialsUnlessAsked(t *testing.T) {
	cfg := DefaultConfig()
	cfg.NodeName, cfg.DockerConfig, cfg.Auth = "node", "/nothing/there", "open"
	s, err := cfg.settings()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCredentials(s, slog.New(slog.DiscardHandler))
	if c != nil || err != nil {
		t.Fatalf("%v, %v", c, err)
	}
	if list, err := c.of(t.Context(), registry.Repository{Host: "docker.io"}); len(list) != 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	cfg.PreheatNodeCredentials = true
	for _, auth := range []string{"node", "relay"} {
		cfg.Auth = auth
		if s, err = cfg.settings(); err != nil {
			t.Fatal(err)
		}
		if _, err := newCredentials(s, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "docker-config") {
			t.Errorf("%s, a file that is not there: %v", auth, err)
		}
	}
}
