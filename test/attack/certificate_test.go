package attack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/issuer/issuertest"
	"github.com/shoalproject/shoal/test/rig"
)

// issuing is a scheduler that issues certificates, before a stand-in for the API
// server of Kubernetes.
type issuing struct {
	*rig.Scheduler
	api *issuertest.API
	ca  *mtlstest.Authority
	url string
}

func startIssuing(t *testing.T, args ...string) *issuing {
	t.Helper()
	i := &issuing{api: issuertest.New(t), ca: mtlstest.NewAuthority(t)}
	i.Scheduler = rig.StartScheduler(t, rig.SchedulerConfig{Env: i.api.Env(), Args: append([]string{
		"--issuer-listen", "127.0.0.1:0", "--issuer-ca-cert", i.ca.File, "--issuer-ca-key", i.ca.KeyFile,
		"--issuer-name", "127.0.0.1", "--issuer-service-account", "shoal:shoal", "--issuer-account-dir", i.api.Dir,
	}, args...)})
	at := regexp.MustCompile(`msg="issuing certificates" listen=(\S+)`)
	rig.Eventually(t, "the issuer serves", 30*time.Second, func() error {
		m := at.FindStringSubmatch(i.Log())
		if m == nil {
			return errors.New("the log does not say where")
		}
		i.url = "https://" + m[1]
		return nil
	})
	return i
}

// node is the configuration of a daemon with the token of a node's pod.
func (i *issuing) node(t *testing.T, name, token string, o *registrytest.Origin) rig.DaemonConfig {
	t.Helper()
	return rig.DaemonConfig{
		Name: name, Schedulers: []*rig.Scheduler{i.Scheduler}, Registries: []string{at(o)},
		Args: []string{"--auth", "open", "--tls-ca", i.ca.File, "--tls-issuer", i.url, "--tls-token-file", rig.WriteFile(t, "token", token)},
	}
}

// ask asks the issuer for a certificate for a request that wants to be much.
func (i *issuing) ask(t *testing.T, token string) (status int, cert *x509.Certificate, answer string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		DNSNames: []string{"node-2", "scheduler.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, i.url+"/v1/certificate", bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	ca, err := os.ReadFile(i.ca.File)
	if err != nil {
		t.Fatal(err)
	}
	cas := x509.NewCertPool()
	cas.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cas}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(body); block != nil {
		if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, cert, string(body)
}

// Root on one node has the token of that node's pod. It gets a certificate for
// that node's name alone, and whoever has no such token gets none.
func TestNodeGetsNoOthersName(t *testing.T) {
	i := startIssuing(t)
	o := registrytest.New(t)
	i.api.Grant("one", issuertest.Node("node-1"))
	status, cert, answer := i.ask(t, "one")
	if status != http.StatusOK || cert == nil || !slices.Equal(cert.DNSNames, []string{"node-1"}) || len(cert.IPAddresses) > 0 || cert.IsCA {
		t.Fatalf("%d %s: %+v", status, answer, cert)
	}
	for name, change := range map[string]func(*issuertest.Token){
		"expired":          func(t *issuertest.Token) { t.Expires = time.Now().Add(-time.Second) },
		"other audience":   func(t *issuertest.Token) { t.Audience = "https://kubernetes.default.svc" },
		"other account":    func(t *issuertest.Token) { t.User = "system:serviceaccount:shoal:shoal-scheduler" },
		"other namespace":  func(t *issuertest.Token) { t.User = "system:serviceaccount:apps:shoal" },
		"not of a pod":     func(t *issuertest.Token) { t.Pod = "" },
		"of no node":       func(t *issuertest.Token) { t.Node = "" },
		"of the scheduler": func(t *issuertest.Token) { t.Node = "127.0.0.1" },
	} {
		token := issuertest.Node("node-3")
		change(&token)
		i.api.Grant(name, token)
		if status, cert, answer := i.ask(t, name); cert != nil || status != 401 && status != 403 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	for _, token := range []string{"", "made-up"} {
		if status, cert, answer := i.ask(t, token); cert != nil || status != 401 {
			t.Errorf("token %q: %d %s", token, status, answer)
		}
	}

	// A daemon that calls itself by another node's name does not get in.
	cfg := i.node(t, "node-2", "one", o)
	cfg.Schedulers = nil
	cfg.Args = append(cfg.Args, "--scheduler", i.Addr, "--node-name", "node-2", "--peer-listen", "127.0.0.1:0")
	thief := rig.StartDaemon(t, cfg)
	rig.Eventually(t, "the thief is refused", 30*time.Second, func() error {
		if !strings.Contains(thief.Log(), "the certificate is not for") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	if n := i.Metric("shoal_scheduler_peers"); n != 0 {
		t.Errorf("%v nodes joined", n)
	}
}

// A certificate of a node does not make a scheduler: daemons hold the one that
// answers to the name by which they dial it.
func TestNodeIsNoScheduler(t *testing.T) {
	ca := rig.NewCA(t)
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(61, 1<<20))
	false1 := rig.StartScheduler(t, rig.SchedulerConfig{Name: "false-scheduler", TLS: ca.Issue(t, "node-2")})
	node := rig.StartDaemon(t, rig.DaemonConfig{
		Registries: []string{at(o)}, TLS: ca.Issue(t, "node-1"),
		Args: []string{"--auth", "open", "--scheduler", false1.Addr, "--node-name", "node-1", "--peer-listen", "127.0.0.1:0"},
	})
	rig.Eventually(t, "the false scheduler is refused", 30*time.Second, func() error {
		if !strings.Contains(node.Log(), "failed to verify certificate") {
			return errors.New("the daemon's log does not say so")
		}
		return nil
	})
	rig.AllRight(t, []rig.Result{node.Blob(upstream, "app", d)})
	if node.Metric("shoal_scheduler_connected") != 0 || false1.Metric("shoal_scheduler_peers") != 0 {
		t.Error("the daemon joined it")
	}
}

// Certificates live for six seconds here, and with each ends the stream that a
// node had to its scheduler. Pulls go on through all that, and the nodes go on to
// fetch from each other: without, three copies of each blob would leave the origin.
func TestPullsOutliveCertificates(t *testing.T) {
	i := startIssuing(t, "--issuer-valid", "6s")
	o := registrytest.New(t)
	var nodes []*rig.Daemon
	first := map[*rig.Daemon]float64{}
	for _, name := range []string{"node-1", "node-2", "node-3"} {
		i.api.Grant("token-"+name, issuertest.Node(name))
		node := rig.StartDaemon(t, i.node(t, name, "token-"+name, o))
		nodes, first[node] = append(nodes, node), expiry(node)
	}
	const size = 1 << 20
	pulls := 0
	for deadline := time.Now().Add(90 * time.Second); ; pulls++ {
		blob := o.AddBlob("app", noise(uint64(100+pulls), size))
		results, _ := rig.BlobAll(nodes, upstream, "app", blob)
		rig.AllRight(t, results)
		if t.Failed() {
			return
		}
		if !slices.ContainsFunc(nodes, func(n *rig.Daemon) bool { return expiry(n) < first[n]+8 }) {
			break // each has renewed twice, and outlived its first
		}
		if time.Now().After(deadline) {
			t.Fatal("certificates are not renewed")
		}
	}
	t.Logf("%d blobs on 3 nodes, %.2f copies", pulls+1, copies(o, size*(pulls+1)))
	if c := copies(o, size*(pulls+1)); c > 1.5 {
		t.Errorf("origin sent %.2f copies, should be at most 1.5", c)
	}
	for _, n := range nodes {
		rig.Eventually(t, "the node is connected again", 30*time.Second, func() error {
			if n.Metric("shoal_scheduler_connected") != 1 {
				return errors.New("it is not connected")
			}
			return nil
		})
	}
}

func expiry(n *rig.Daemon) float64 {
	return n.Metric("shoal_tls_certificate_expiry_timestamp_seconds")
}

// While nobody issues certificates a node serves its runtime, alone; it joins
// the swarm when it gets one.
func TestPullsWithoutCertificate(t *testing.T) {
	i := startIssuing(t)
	i.api.Fail(http.StatusServiceUnavailable)
	i.api.Grant("one", issuertest.Node("node-1"))
	o := registrytest.New(t)
	cfg := i.node(t, "node-1", "one", o)
	cfg.Schedulers = nil
	cfg.Args = append(cfg.Args, "--scheduler", i.Addr, "--node-name", "node-1", "--peer-listen", "127.0.0.1:0")
	node := rig.StartDaemon(t, cfg)
	rig.Eventually(t, "the node is told why it gets none", 30*time.Second, func() error {
		if !strings.Contains(node.Log(), "no certificate could be had") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	d := o.AddBlob("app", noise(62, 1<<20))
	rig.AllRight(t, []rig.Result{node.Blob(upstream, "app", d)})
	if expiry(node) != 0 || node.Metric("shoal_scheduler_connected") != 0 {
		t.Error("it has a certificate")
	}
	i.api.Fail(0)
	rig.Eventually(t, "the node joins", 90*time.Second, func() error {
		if node.Metric("shoal_scheduler_connected") != 1 {
			return errors.New("it is not connected")
		}
		return nil
	})
}

// Strangers that hold all connections of an issuer, from many addresses, keep no
// node from its certificate.
func TestFloodedIssuerServesNodes(t *testing.T) {
	i := startIssuing(t)
	i.api.Grant("one", issuertest.Node("node-1"))
	o := registrytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var strangers sync.WaitGroup
	var held atomic.Int64
	for n := range 40 * 16 {
		strangers.Go(func() {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+n%40))}}
			for ctx.Err() == nil {
				if c, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(i.url, "https://")); err == nil {
					held.Add(1)
					stop := context.AfterFunc(ctx, func() { c.Close() })
					_, _ = c.Read(make([]byte, 1)) // until the issuer closes it
					stop()
					c.Close()
				}
				select { // not as fast as can be: the processor is not under attack here
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
			}
		})
	}
	rig.Eventually(t, "all connections are taken", 30*time.Second, func() error {
		if n := held.Load(); n < 40*16 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	node := rig.StartDaemon(t, i.node(t, "node-1", "one", o))
	if expiry(node) == 0 || strings.Contains(node.Log(), "no certificate could be had") {
		t.Error("the node did not get its certificate at once")
	}
	t.Logf("%d connections were held", held.Load())
	cancel()
	strangers.Wait()
}
