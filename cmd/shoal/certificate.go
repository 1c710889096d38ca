package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/mtls"
)

func newCertificateCommand() *cobra.Command {
	var (
		caCert, caKey, dir string
		valid              time.Duration
	)
	cmd := &cobra.Command{
		Use:   "certificate --ca-cert FILE --ca-key FILE --dir DIRECTORY NAME...",
		Short: "Issue the certificate of a node or scheduler from the cluster's CA",
		Long: `Writes tls.crt, tls.key and ca.crt into a directory: what --tls-cert, --tls-key and
--tls-ca take. The names are DNS names or IP addresses: of a node one that no
other node has, of a scheduler the one by which daemons reach it. Who has the
CA's key can join as anybody: keep it where only this command runs.`,
		Example: `  shoal certificate --ca-cert ca.pem --ca-key ca.key --dir node-1 node-1`,
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, names []string) error {
			if caCert == "" || caKey == "" || dir == "" || valid <= 0 {
				return &usageError{errors.New("--ca-cert, --ca-key and --dir are needed, and a --valid of more than 0")}
			}
			return issue(caCert, caKey, dir, valid, names)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&caCert, "ca-cert", "", "PEM `FILE` with the CA's certificate; more in it are for --tls-ca alone")
	f.StringVar(&caKey, "ca-key", "", "PEM `FILE` with its key")
	f.StringVar(&dir, "dir", "", "`DIRECTORY` to write to; one that is missing is made, for its owner alone")
	f.DurationVar(&valid, "valid", 365*24*time.Hour, "`TIME` that it is valid, but no longer than the CA is")
	return cmd
}

func issue(caCert, caKey, dir string, valid time.Duration, names []string) error {
	ca, err := os.ReadFile(caCert)
	if err != nil {
		return fmt.Errorf("--ca-cert: %w", err)
	}
	key, err := os.ReadFile(caKey)
	if err != nil {
		return fmt.Errorf("--ca-key: %w", err)
	}
	cert, certKey, err := mtls.Issue(ca, key, valid, names...)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	// The key first: a daemon that runs takes both when the certificate changes.
	for _, f := range []struct {
		name    string
		content []byte
	}{{"ca.crt", ca}, {"tls.key", certKey}, {"tls.crt", cert}} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path+".new", f.content, 0o600); err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
	}
	return nil
}
