package daemon

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/mtls/mtlstest"
)

func TestDefaultConfigIsValid(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

// Each bad setting gives one error that names it.
func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Config)
		mention string
	}{
		"listen":           {func(c *Config) { c.Listen = "4400" }, "HOST:PORT"},
		"admin-listen":     {func(c *Config) { c.AdminListen = "" }, "HOST:PORT"},
		"peer-listen":      {func(c *Config) { c.PeerListen = "" }, "HOST:PORT"},
		"peer-advertise":   {func(c *Config) { c.PeerAdvertise = "10.0.0.1:0" }, "HOST:PORT"},
		"scheduler":        {func(c *Config) { c.Schedulers = []string{"a:1", "http://b:4402"} }, "http://b:4402"},
		"node-name":        {func(c *Config) { c.NodeName = "node 1" }, "node 1"},
		"zone":             {func(c *Config) { c.Zone = "zône" }, "ASCII"},
		"upload-rate":      {func(c *Config) { c.UploadRate = -1 }, "negative"},
		"download-rate":    {func(c *Config) { c.DownloadRate = -1 }, "negative"},
		"data-dir":         {func(c *Config) { c.DataDir = "" }, "needed"},
		"cache-size":       {func(c *Config) { c.CacheSize = -1 }, "negative"},
		"origin-rate":      {func(c *Config) { c.OriginRate = -1 }, "negative"},
		"tag-ttl":          {func(c *Config) { c.TagTTL = 0 }, "more than 0"},
		"permission-ttl":   {func(c *Config) { c.PermissionTTL = 0 }, "more than 0"},
		"auth-offline":     {func(c *Config) { c.AuthOffline = "some" }, "some"},
		"auth-offline-for": {func(c *Config) { c.AuthOfflineFor = -1 }, "more than 0"},
		"max-connections":  {func(c *Config) { c.MaxConnections = 0 }, "at least 1"},
		"max-downloads":    {func(c *Config) { c.MaxDownloads = 0 }, "at least 1"},
		"shutdown-grace":   {func(c *Config) { c.ShutdownGrace = -1 }, "negative"},
		"auth":             {func(c *Config) { c.Auth = "maybe" }, "maybe"},
		"registry":         {func(c *Config) { c.Registries = []string{"a.b", "a.b"} }, "twice"},
		"default-registry": {func(c *Config) { c.DefaultRegistry = "http://x" }, "without scheme"},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		err := cfg.Validate()
		var setting *ConfigError
		if !errors.As(err, &setting) || setting.Setting != name || !strings.Contains(err.Error(), c.mention) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who decides may be said for one registry.
func TestAuthOfARegistry(t *testing.T) {
	cfg := DefaultConfig()
	cfg.NodeName = "node"
	cfg.Registries = []string{"a.b,auth=node", "c.d,auth=open", "e.f"}
	s, err := cfg.settings()
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"a.b": "node", "c.d": "open", "e.f": "relay"} {
		if got := authNames[s.authFor(host)]; got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	cfg.Registries = []string{"a.b,auth=maybe"}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "maybe") || !strings.Contains(err.Error(), "a.b") {
		t.Errorf("%v", err)
	}
}

// What a node may be told about the swarm.
func TestValidateSwarm(t *testing.T) {
	for _, c := range []struct {
		setting string
		change  func(c *Config, s string)
		good    []string
		bad     []string
	}{
		{
			"scheduler", func(c *Config, s string) { c.Schedulers = []string{s} },
			[]string{"a:1", "10.0.0.1:4402", "[::1]:4402", "[fe80::1%eth0]:4402", "dns:///shoal.svc:4402"},
			[]string{"", "a", ":4402", "a:0", "a:65536", "a:http", "dns://a:1", "dns:///:1", "a b:1", "a:1,b:1", "u@a:1"},
		},
		{
			"peer-advertise", func(c *Config, s string) { c.PeerAdvertise = s },
			[]string{"", ":4401", "a:1", "10.0.0.1:4401", "[::1]:4401"},
			[]string{"a", "a:0", "a:x", "::1:4401", "a b:1", "a:65536"},
		},
		{
			"zone", func(c *Config, s string) { c.Zone = s },
			[]string{"", "eu-1", strings.Repeat("z", 253)},
			[]string{"a b", "a\n", strings.Repeat("z", 254)},
		},
		{
			"node-name", func(c *Config, s string) { c.NodeName = s },
			[]string{"", "node-1", "10.0.0.1"},
			[]string{" ", strings.Repeat("n", 254)},
		},
	} {
		for _, s := range c.good {
			cfg := DefaultConfig()
			c.change(&cfg, s)
			if err := cfg.Validate(); err != nil {
				t.Errorf("%s %q: %v", c.setting, s, err)
			}
		}
		for _, s := range c.bad {
			cfg := DefaultConfig()
			c.change(&cfg, s)
			var setting *ConfigError
			if err := cfg.Validate(); !errors.As(err, &setting) || setting.Setting != c.setting {
				t.Errorf("%s %q: %v", c.setting, s, err)
			}
		}
	}
}

// A node without a name takes the host's.
func TestNodeName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{"": host, "n1": "n1"} {
		cfg := DefaultConfig()
		cfg.NodeName = given
		if s, err := cfg.settings(); err != nil || s.nodeName != want {
			t.Errorf("%q: %v, %+v", given, err, s)
		}
	}
}

// With TLS a node is who its certificate says, and peers take its
// configuration.
func TestIdentity(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "a.example", "10.0.0.1")
	pattern, patternKey := ca.Issue(t, nil, "*.example")
	with := func(cert, key, ca, name string) Config {
		cfg := DefaultConfig()
		cfg.TLSCert, cfg.TLSKey, cfg.TLSCA, cfg.NodeName = cert, key, ca, name
		return cfg
	}
	for given, want := range map[string]string{"": "a.example", "10.0.0.1": "10.0.0.1"} {
		s, err := with(cert, key, ca.File, given).settings()
		if err != nil || s.nodeName != want || s.identity == nil {
			t.Fatalf("%q: %v, %+v", given, err, s)
		}
		endpoint, err := peer.New(peer.Config{TLS: s.identity.Config(slog.New(slog.DiscardHandler))})
		if err != nil {
			t.Fatal(err)
		}
		endpoint.Close()
	}
	for _, c := range []struct {
		cfg              Config
		setting, mention string
	}{
		{with(cert, key, ca.File, "b.example"), "node-name", "a.example, 10.0.0.1"},
		{with(pattern, patternKey, ca.File, ""), "node-name", "names no single node"},
		{with(pattern, patternKey, ca.File, "b.example"), "node-name", "names no single node"},
		{with("", key, ca.File, ""), "tls-cert", "all three"},
		{with(cert, "", ca.File, ""), "tls-key", "all three"},
		{with(cert, key, "", ""), "tls-ca", "all three"},
		{with(cert, patternKey, ca.File, ""), "tls-key", patternKey},
	} {
		var setting *ConfigError
		if err := c.cfg.Validate(); !errors.As(err, &setting) || setting.Setting != c.setting || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%s: %v", c.setting, err)
		}
	}
}

func TestParseRegistry(t *testing.T) {
	e, err := ParseRegistry("a.b=https://10.0.0.1:5000,allow=10.0.0.2:9000,allow=10.0.0.3:9000")
	if err != nil || e.Host != "a.b" || len(e.AllowHosts) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	for in, mention := range map[string]string{
		"a.b,ca=/nonexistent":    "/nonexistent",
		"a.b,ca=config_test.go":  "no PEM",
		"a.b,cert=x":             "need each other",
		"a.b,cert=x,key=y":       "client certificate",
		"a.b,allow=10.0.0.1":     "HOST:PORT",
		"a.b,colour=red":         "colour",
		"a.b,":                   "option",
		"a.b=https://x,insecure": "insecure",
	} {
		if _, err := ParseRegistry(in); err == nil || !strings.Contains(err.Error(), mention) || !strings.Contains(err.Error(), "a.b") {
			t.Errorf("%s: %v", in, err)
		}
	}
}
