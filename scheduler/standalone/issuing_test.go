package standalone

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/scheduler/issuer"
	"github.com/shoalproject/shoal/scheduler/issuer/issuertest"
)

// issuingConfig returns the configuration of a scheduler that issues, in a pod.
func issuingConfig(t *testing.T, ca *mtlstest.Authority) (Config, *issuertest.API) {
	t.Helper()
	api := issuertest.New(t)
	t.Setenv("KUBERNETES_SERVICE_HOST", api.Host)
	t.Setenv("KUBERNETES_SERVICE_PORT", api.Port)
	cfg := config()
	cfg.Issuer.Listen, cfg.Issuer.CACert, cfg.Issuer.CAKey = "127.0.0.1:0", ca.File, ca.KeyFile
	cfg.Issuer.Names, cfg.Issuer.Accounts, cfg.Issuer.AccountDir = []string{"127.0.0.1"}, []string{"shoal:shoal"}, api.Dir
	return cfg, api
}

// A scheduler that issues proves its own name by the same CA, and renews its own
// certificate in time.
func TestIssues(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cfg, api := issuingConfig(t, ca)
	cfg.Issuer.Valid = minValid
	s, stop := start(t, cfg)
	d := connect(t, s, identity(t, ca, "node-1"))
	d.wait(t, func(event any) bool { return event == reachable(true) })

	request, _, err := mtls.Request()
	if err != nil {
		t.Fatal(err)
	}
	api.Grant("one", issuertest.Node("node-1"))
	for token, want := range map[string]int{"one": http.StatusOK, "two": http.StatusUnauthorized} {
		req, err := http.NewRequest(http.MethodPost, "https://"+s.issuing.listener.Addr().String()+issuer.Path, strings.NewReader(string(request)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		tlsConfig := identity(t, ca, "x")
		tlsConfig.GetClientCertificate = nil
		client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("token %s: %s", token, resp.Status)
		}
	}
	_, text := get(t, s, "/metrics")
	for _, line := range []string{
		`shoal_issuer_requests_total{result="issued"} 1`, `shoal_issuer_requests_total{result="refused"} 1`, "shoal_issuer_ca_expiry_timestamp_seconds ",
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("the metrics lack %s:\n%s", line, text)
		}
	}

	first := s.identity.Expires()
	for deadline := time.Now().Add(patience); !s.identity.Expires().After(first); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the scheduler's own certificate is not renewed")
		}
	}
	if time.Now().After(first) {
		t.Error("it was renewed after it had expired")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What is missing for an issuer is said by the name of the setting.
func TestIssuerSettings(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "127.0.0.1")
	good, _ := issuingConfig(t, ca)
	for _, c := range []struct {
		change  func(*Config)
		setting string
		mention string
	}{
		{func(c *Config) { c.Issuer.Listen = "" }, "issuer-listen", "missing"},
		{func(c *Config) { c.Issuer.Listen = "4405" }, "issuer-listen", "HOST:PORT"},
		{func(c *Config) { c.Issuer.CACert = "" }, "issuer-ca-cert", "missing"},
		{func(c *Config) { c.Issuer.CAKey = "" }, "issuer-ca-key", "missing"},
		{func(c *Config) { c.Issuer.CACert = "/nonexistent" }, "issuer-ca-cert", "/nonexistent"},
		{func(c *Config) { c.Issuer.CACert, c.Issuer.CAKey = cert, key }, "issuer-ca-key", "not the certificate of a CA"},
		{func(c *Config) { c.Issuer.CAKey = key }, "issuer-ca-key", "private key does not match"},
		{func(c *Config) { c.Issuer.Names = nil }, "issuer-name", "missing"},
		{func(c *Config) { c.Issuer.Accounts = nil }, "issuer-service-account", "missing"},
		{func(c *Config) { c.Issuer.Accounts = []string{"shoal"} }, "issuer-listen", "NAMESPACE:NAME"},
		{func(c *Config) { c.Issuer.Audience = "" }, "issuer-audience", "missing"},
		{func(c *Config) { c.Issuer.Valid = time.Second }, "issuer-valid", "at least"},
		{func(c *Config) { c.Issuer.AccountDir = "/nonexistent" }, "issuer-listen", "/nonexistent"},
		{func(c *Config) { c.TLSCert, c.TLSKey, c.TLSCA = cert, key, ca.File }, "issuer-listen", "its own certificate"},
		{func(*Config) { os.Unsetenv("KUBERNETES_SERVICE_HOST") }, "issuer-listen", "in Kubernetes"},
	} {
		cfg := good
		c.change(&cfg)
		s, err := New(cfg)
		var wrong *ConfigError
		if s != nil || !errors.As(err, &wrong) || wrong.Setting != c.setting || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%s %s: %v", c.setting, c.mention, err)
		}
	}
}
