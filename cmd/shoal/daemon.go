package main

import (
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/internal/logbound"
	"github.com/shoalproject/shoal/systemd"
)

func newDaemonCommand() *cobra.Command {
	cfg := daemon.DefaultConfig()
	var log logging
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the node agent: the mirror that the container runtime asks",
		Long: `Runs the node agent. Point the container runtime's registry mirror at --listen.

Every node of a swarm names the same schedulers with --scheduler, in the same
spelling, and has a name (--node-name) that no other has. Other nodes must reach
--peer-listen, and nodes that are named alike, such as "localhost", keep each
other out.

Every flag can also be set by an environment variable (--cache-size is
SHOAL_CACHE_SIZE; values of a repeatable one are separated by spaces) or in the
YAML file of --config (cache-size: 20GiB). A flag beats the environment, which
beats the file.

SIGHUP has the daemon look at once for changes of its certificate and of docker's
config.json, which it also finds by itself; other settings need a restart.`,
		Example: `  # A mirror of Docker Hub and of a registry in the house:
  shoal daemon --registry docker.io --registry registry.example.com --auth node

  # A node of a swarm; other nodes and the scheduler must prove who they are:
  shoal daemon --scheduler scheduler.example.com:4402 --zone eu-1a \
    --tls-cert node.pem --tls-key node.key --tls-ca ca.pem

  # A plain-HTTP registry under a name of its own, behind a private CA:
  shoal daemon --registry 'apps.example.com=https://10.0.0.5:5000,ca=/etc/shoal/ca.pem'`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			cfg.Logger = log.logger(cmd.ErrOrStderr())
			cfg.Version = readBuild().Version
			var err error
			if cfg.Sockets, err = systemd.Sockets(daemon.SocketNames()...); err != nil {
				return err
			}
			d, err := daemon.New(cfg)
			if err != nil {
				return err
			}
			defer onHangup(d.Reload)()
			return d.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "`HOST:PORT` of the mirror, for the runtime of this node")
	f.StringVar(&cfg.PeerListen, "peer-listen", cfg.PeerListen, "`HOST:PORT` where other nodes fetch from this one; only with --scheduler")
	f.StringVar(&cfg.PeerAdvertise, "peer-advertise", cfg.PeerAdvertise, "`HOST:PORT` by which they reach it (default the address by which the scheduler sees it)")
	f.StringVar(&cfg.AdminListen, "admin-listen", cfg.AdminListen, "`HOST:PORT` of /healthz, /readyz, /metrics and /debug/pprof/")
	f.StringArrayVar(&cfg.LocalHosts, "local-host", nil, "`NAME` in the Host header that --listen and --admin-listen take over loopback, beside localhost and 127.0.0.1; for clients that know this node by a name of its own; repeatable")
	f.StringArrayVar(&cfg.Schedulers, "scheduler", cfg.Schedulers, "`SCHEDULER` of the swarm: HOST:PORT, or dns:///NAME:PORT for all addresses of a name; repeatable; every node must name them alike (default none: the node is alone, and listens for no peer)")
	f.StringVar(&cfg.NodeName, "node-name", cfg.NodeName, "`NAME` of this node to the others, no two alike; with TLS, one that its certificate proves (default the first of those, else the host's name)")
	f.StringVar(&cfg.Zone, "zone", cfg.Zone, "`NAME` of this node's failure and cost domain; few bytes cross from one to another")
	f.StringArrayVar(&cfg.Labels, "label", cfg.Labels, "`KEY=VALUE` by which preheat jobs may choose this node; repeatable")
	f.StringVar(&cfg.TLSCert, "tls-cert", cfg.TLSCert, "PEM `FILE` with this node's certificate, for mutual TLS with other nodes and schedulers; with --tls-key and --tls-ca")
	f.StringVar(&cfg.TLSKey, "tls-key", cfg.TLSKey, "PEM `FILE` with its key")
	f.StringVar(&cfg.TLSCA, "tls-ca", cfg.TLSCA, "PEM `FILE` with the CA that signs the certificates of all nodes and schedulers")
	f.StringVar(&cfg.TLSIssuer, "tls-issuer", cfg.TLSIssuer, "`URL` https://HOST:PORT of a scheduler's --issuer-listen, which issues this node's certificate in place of --tls-cert and --tls-key; the node is on its own until it has one")
	f.StringVar(&cfg.TLSTokenFile, "tls-token-file", cfg.TLSTokenFile, "`FILE` with the token that tells --tls-issuer which node this is")
	f.BoolVar(&cfg.PeerPlaintextPrivate, "peer-plaintext-private", cfg.PeerPlaintextPrivate, "without --tls-*, share private images too: everyone who reaches --peer-listen and knows a digest then gets the blob (default only what is public is shared)")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "`DIRECTORY` of the cache, for this daemon alone")
	f.Var(newBytes(&cfg.CacheSize), "cache-size", "`SIZE` of the cache; a tenth of the disk stays free in any case")
	f.StringArrayVar(&cfg.Registries, "registry", cfg.Registries, "allow this `UPSTREAM`: HOST, or HOST=URL if its origin is elsewhere; options, each after a comma: ca=FILE, cert=FILE and key=FILE, allow=HOST:PORT (may be redirected to), auth=MODE (instead of --auth); repeatable; naming any replaces the list of public ones")
	f.StringVar(&cfg.DefaultRegistry, "default-registry", cfg.DefaultRegistry, "upstream `HOST` of requests that name none")
	f.StringVar(&cfg.Auth, "auth", cfg.Auth, "`MODE` of deciding who may read: relay (the origin decides for every caller), node (this node's docker config.json speaks for all), open (everyone)")
	f.DurationVar(&cfg.PermissionTTL, "permission-ttl", cfg.PermissionTTL, "`TIME` for which the origin's permission of a caller and blob is remembered, unless the token expires before")
	f.StringVar(&cfg.AuthOffline, "auth-offline", cfg.AuthOffline, "`WHO` gets what is held while the origin gives no answer: proven (those to whom the origin gave it within --auth-offline-for, and all what is public), none, all")
	f.DurationVar(&cfg.AuthOfflineFor, "auth-offline-for", cfg.AuthOfflineFor, "`TIME` for which the origin's permission holds while it gives no answer")
	f.BoolVar(&cfg.AllowBasicRelay, "allow-basic-relay", cfg.AllowBasicRelay, "with relay, hand Basic challenges on: runtimes answer them with the password itself, over the mirror's plain HTTP")
	f.BoolVar(&cfg.PreheatNodeCredentials, "preheat-node-credentials", cfg.PreheatNodeCredentials, "let preheat jobs that bring no credentials use those of --docker-config with --auth relay too; whoever commands the scheduler then decides what they are used for")
	f.StringVar(&cfg.DockerConfig, "docker-config", cfg.DockerConfig, "`FILE` with the credentials for --auth node, and for preheats that bring none (default docker's own)")
	f.Var(newBytes(&cfg.UploadRate), "upload-rate", "`SIZE` per second sent to all other nodes together; 0 is no limit")
	f.Var(newBytes(&cfg.DownloadRate), "download-rate", "`SIZE` per second received from all other nodes together; 0 is no limit")
	f.Var(newBytes(&cfg.OriginRate), "origin-rate", "`SIZE` per second read from all origins together; 0 is no limit")
	f.DurationVar(&cfg.TagTTL, "tag-ttl", cfg.TagTTL, "`TIME` that a tag stays resolved")
	f.IntVar(&cfg.MaxConnections, "max-connections", cfg.MaxConnections, "`NUMBER` of connections to the mirror at once; idle ones make room, then more are closed at once")
	f.IntVar(&cfg.MaxDownloads, "max-downloads", cfg.MaxDownloads, "`NUMBER` of blobs in flight at once; a registry has a fair share of them, and more are served past the store")
	f.DurationVar(&cfg.ShutdownGrace, "shutdown-grace", cfg.ShutdownGrace, "`TIME` that responses may still take after a signal to stop")
	log.addFlags(f)
	f.String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

// logging is how the process logs.
type logging struct {
	level slog.Level
	json  bool
}

func (l *logging) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.level}
	if l.json {
		return slog.New(logbound.New(slog.NewJSONHandler(w, opts)))
	}
	return slog.New(logbound.New(slog.NewTextHandler(w, opts)))
}
