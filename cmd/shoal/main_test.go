package main

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shoalproject/shoal/mtls/mtlstest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

// TestScripts runs the scripts of testdata: the command as users meet it.
func TestScripts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // the scripts run in parallel, after this function
	certificates := writeCertificates(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TAKEN", taken.Addr().String())
			env.Setenv("CERTS", certificates)
			env.Setenv("ROOT", "")
			if os.Geteuid() == 0 {
				env.Setenv("ROOT", "yes")
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": wantCode,
			"one-line": func(ts *testscript.TestScript, neg bool, _ []string) {
				if text := ts.ReadFile("stderr"); len(text) == 0 || countLines(text) != 1 {
					ts.Fatalf("stderr is not one line:\n%s", text)
				}
			},
		},
	})
}

// writeCertificates returns a directory with ca.pem, two certificates for
// 127.0.0.1 and node-1 with their keys, a.pem a.key b.pem b.key, one that has
// expired, old.pem old.key, one that is for servers alone, server.pem
// server.key, and one that may sign others, issuer.pem issuer.key.
func writeCertificates(t *testing.T) string {
	ca := mtlstest.NewAuthority(t)
	dir := filepath.Dir(ca.File)
	for name, change := range map[string]func(*x509.Certificate){
		"a": nil, "b": nil,
		"old":    func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) },
		"server": func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"issuer": func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		},
	} {
		file := filepath.Join(dir, name)
		ca.Reissue(t, file+".pem", file+".key", change, "node-1", "127.0.0.1")
	}
	return dir
}

func countLines(s string) (n int) {
	for _, c := range s {
		if c == '\n' {
			n++
		}
	}
	return n
}

// wantCode runs shoal with arguments and insists on the exit code that is
// given first.
func wantCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("shoal", args[1:]...)
	code := "0"
	if err != nil {
		code = codeOf(err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// codeOf returns the exit code in an error of os/exec, as text.
func codeOf(err error) string {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}
