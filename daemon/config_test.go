package daemon

import (
	"errors"
	"strings"
	"testing"
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
		"data-dir":         {func(c *Config) { c.DataDir = "" }, "needed"},
		"cache-size":       {func(c *Config) { c.CacheSize = -1 }, "negative"},
		"origin-rate":      {func(c *Config) { c.OriginRate = -1 }, "negative"},
		"tag-ttl":          {func(c *Config) { c.TagTTL = 0 }, "more than 0"},
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
