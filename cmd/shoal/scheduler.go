package main

import (
	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/scheduler/standalone"
	"github.com/shoalproject/shoal/systemd"
)

func newSchedulerCommand() *cobra.Command {
	cfg := standalone.DefaultConfig()
	cfg.JobStore = standalone.DefaultJobStore
	var log logging
	cmd := &cobra.Command{
		Use:   "scheduler",
		Short: "Run a scheduler: it says which node brings which piece",
		Long: `Runs a scheduler for the daemons of a cluster, which name it with --scheduler.
It says which node brings which piece of an image, and who fetches from whom;
the bytes of images never pass through it. It keeps nothing on disk: one that is
started again is told by the daemons, within seconds, what they hold.

Several may run, and need not know of each other. Each blob belongs to one of
them, and to the next while that one is away. Every daemon must name the same
ones in the same spelling, since the spelling decides which blob belongs to
which: either each by --scheduler HOST:PORT, or all by one name of the DNS that
has all their addresses, --scheduler dns:///NAME:PORT, which is resolved again
every 15 seconds.

With --tls-cert, --tls-key and --tls-ca the scheduler and the daemons prove to
each other who they are, or it takes nobody. Its certificate must be for the
HOST or NAME by which the daemons reach it. Without, who reaches --listen may
join any swarm.

In Kubernetes the scheduler can issue the certificates of all nodes instead
(--issuer-listen): each daemon asks with the token of its pod, and the name in
its certificate is that of the node that the pod runs on.

Every flag can also be set by an environment variable (--admin-listen is
SHOAL_ADMIN_LISTEN) or in the YAML file of --config (admin-listen: ":4404"). A
flag beats the environment, which beats the file.

SIGHUP has the scheduler look at once for changes of its certificate, which it
also finds by itself; other settings need a restart.`,
		Example: `  # One scheduler, and a daemon that uses it:
  shoal scheduler
  shoal daemon --scheduler scheduler.example.com:4402

  # Who joins must have a certificate; probes and metrics from elsewhere:
  shoal scheduler --admin-listen :4404 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			cfg.Logger = log.logger(cmd.ErrOrStderr())
			cfg.Version = readBuild().Version
			var err error
			if cfg.Sockets, err = systemd.Sockets(standalone.SocketNames()...); err != nil {
				return err
			}
			s, err := standalone.New(cfg)
			if err != nil {
				return err
			}
			defer onHangup(s.Reload)()
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "`HOST:PORT` where daemons connect")
	f.StringVar(&cfg.AdminListen, "admin-listen", cfg.AdminListen, "`HOST:PORT` of /healthz, /readyz, /metrics, /debug/pprof/ and the job API, /api/v1/")
	f.StringArrayVar(&cfg.AdminHosts, "admin-host", nil, "`NAME` in the Host header that --admin-listen takes over loopback, beside localhost and 127.0.0.1; for a proxy on this machine; repeatable")
	f.StringVar(&cfg.TLSCert, "tls-cert", cfg.TLSCert, "PEM `FILE` with the scheduler's certificate, for mutual TLS with daemons; with --tls-key and --tls-ca")
	f.StringVar(&cfg.TLSKey, "tls-key", cfg.TLSKey, "PEM `FILE` with its key")
	f.StringVar(&cfg.TLSCA, "tls-ca", cfg.TLSCA, "PEM `FILE` with the CA that signs the certificates of all nodes and schedulers")
	f.StringVar(&cfg.Issuer.Listen, "issuer-listen", cfg.Issuer.Listen, "`HOST:PORT` where nodes in Kubernetes get their certificates by the tokens of their pods (--tls-issuer); the scheduler issues its own, too, in place of --tls-cert, --tls-key and --tls-ca")
	f.StringVar(&cfg.Issuer.CACert, "issuer-ca-cert", cfg.Issuer.CACert, "PEM `FILE` with the CA that issues; more certificates in it are trusted only")
	f.StringVar(&cfg.Issuer.CAKey, "issuer-ca-key", cfg.Issuer.CAKey, "PEM `FILE` with its key")
	f.StringArrayVar(&cfg.Issuer.Names, "issuer-name", cfg.Issuer.Names, "`NAME` or address by which nodes reach this scheduler, for its own certificate; repeatable")
	f.StringArrayVar(&cfg.Issuer.Accounts, "issuer-service-account", cfg.Issuer.Accounts, "`NAMESPACE:NAME` of a service account whose pods get certificates, each one for the node that it is on; repeatable")
	f.StringVar(&cfg.Issuer.Audience, "issuer-audience", cfg.Issuer.Audience, "`AUDIENCE` that tokens must be for")
	f.DurationVar(&cfg.Issuer.Valid, "issuer-valid", cfg.Issuer.Valid, "`TIME` that a certificate is valid; it is renewed at half of it")
	f.StringVar(&cfg.Issuer.AccountDir, "issuer-account-dir", cfg.Issuer.AccountDir, "`DIRECTORY` with token and ca.crt by which the scheduler asks the API server to review tokens")
	f.StringVar(&cfg.JobStore, "job-store", cfg.JobStore, "where records of preheat jobs are kept: `FILE`, redis://HOST:PORT where several schedulers run, or memory (default a file, or memory where that cannot be)")
	f.StringVar(&cfg.APITokenFile, "api-token-file", cfg.APITokenFile, "`FILE` with the token that the job API asks for; without, it serves this machine alone")
	log.addFlags(f)
	f.String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}
