package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/test/rig"
)

// readers returns an origin whose repositories have one reader each, and a user
// robot who reads all.
func readers(t *testing.T, of map[string]string) *registrytest.Origin {
	users := map[string]string{"robot": "robot-password"}
	for _, user := range of {
		users[user] = user + "-password"
	}
	return registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Users: users, Allow: func(user, repo string) bool {
		return user == "robot" || user != "" && of[repo] == user
	}}))
}

// home returns a directory with docker's config.json, which has a user's
// password.
func home(t *testing.T, user string) string {
	dir := t.TempDir()
	content := fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":"%s-password"}}}`, upstream, user, user)
	err := os.Mkdir(filepath.Join(dir, ".docker"), 0o700)
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, ".docker", "config.json"), []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// by asks a daemon for a path in the name of somebody.
func by(t *testing.T, n *rig.Daemon, authorization, path string) rig.Result {
	ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
	defer cancel()
	q := rig.Request{Host: upstream, Path: path, Header: http.Header{}}
	if authorization != "" {
		q.Header.Set("Authorization", authorization)
	}
	return n.Do(ctx, q)
}

// The node has docker credentials for a registry, and callers are the registry's
// to judge. While the registry is limited or down, nobody gets what came by
// somebody's token but the one who has shown that token.
func TestPrivateImageStaysPrivateWhileRegistryIsDown(t *testing.T) {
	t.Parallel() // it waits half a minute for the daemon to ask what is public
	o := readers(t, map[string]string{"app": "alice"})
	img := o.AddImage("app", "v1", noise(1, 1<<20))
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Home: home(t, "robot")})
	alice := "Bearer " + o.IssueToken("alice", "app")
	paths := []string{"app/manifests/v1", "app/manifests/" + img.Manifest.Digest.String(), "app/blobs/" + img.Layers[0].Digest.String()}
	for _, path := range paths {
		if r := by(t, n, alice, path); r.Status != 200 {
			t.Fatalf("alice asks for %s: %v", path, r)
		}
	}
	before := len(o.Requests())
	rig.Eventually(t, "the daemon asks whether the image is public", time.Minute, func() error {
		if len(o.Requests()) < before+2 {
			return errors.New("nothing was asked")
		}
		return nil
	})
	// Its answer, and what the daemon makes of that.
	rig.Eventually(t, "the daemon has the answer", rig.Limit, func() error {
		if by(t, n, "", paths[0]).Status != 401 {
			return errors.New("the registry does not refuse")
		}
		return nil
	})
	for outage, begin := range map[string]func() (end func()){
		"429":  func() func() { return o.Inject(registrytest.Order{}, registrytest.Status(429)) },
		"down": func() func() { return o.Inject(registrytest.Order{}, registrytest.Reset()) },
	} {
		end := begin()
		for who, authorization := range map[string]string{"nobody": "", "bob": "Bearer " + o.IssueToken("bob", "other"), "a forger": "Bearer made-up"} {
			for _, path := range paths {
				if r := by(t, n, authorization, path); r.Status/100 == 2 || r.Size > 2000 {
					t.Errorf("%s: %s gets %s: %v", outage, who, path, r)
				}
			}
		}
		if r := by(t, n, alice, paths[2]); r.Status != 200 {
			t.Errorf("%s: alice, who showed this token before, gets %v", outage, r)
		}
		end()
	}
}

// A job preheats a private image with a token of its own. Callers whom the
// registry refuses get nothing of it, during the job and afterwards.
func TestPreheatTokenOpensNothingForOthers(t *testing.T) {
	for mode, args := range map[string][]string{
		"node":                       {"--registry", "", "--auth", "node"},
		"open beside another's mode": {"--registry", "relay.test=http://127.0.0.1:9,auth=relay", "--auth", "open"},
	} {
		t.Run(mode, func(t *testing.T) {
			o := readers(t, map[string]string{"app": "alice", "other": "bob"})
			img := o.AddImage("app", "v1", noise(2, 4<<20))
			layer := img.Layers[0]
			ca := rig.NewCA(t)
			s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: ca.Issue(t, "127.0.0.1")})
			cfg := rig.DaemonConfig{
				Name: "node-1", Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, TLS: ca.Issue(t, "node-1"),
				Home: home(t, "bob"), Args: args[2:],
			}
			if args[1] != "" {
				cfg.Registries = append(cfg.Registries, args[1])
			}
			n := rig.StartDaemon(t, cfg)
			begun, release := make(chan struct{}), make(chan struct{})
			o.Inject(registrytest.Order{Kind: registrytest.Blob, Method: http.MethodGet, Digest: layer.Digest, Times: 1},
				registrytest.After(1<<20, func() {
					close(begun)
					<-release
				}))
			client, err := api.NewClient([]string{s.Admin}, "", "")
			if err != nil {
				t.Fatal(err)
			}
			path := "app/blobs/" + layer.Digest.String()
			refused := func(when string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				for _, path := range []string{path, "app/manifests/" + img.Manifest.Digest.String()} {
					if r := n.Do(ctx, rig.Request{Host: upstream, Path: path}); r.Status < 400 {
						t.Errorf("%s nobody gets %s: %v", when, path, r)
					}
				}
			}
			refused("before the job")
			job, err := client.Create(t.Context(), api.Request{
				Spec:        jobs.Spec{Images: []string{upstream + "/app:v1"}},
				Credentials: jobs.Credentials{upstream + "/app": "Bearer " + o.IssueToken("alice", "app")},
			})
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-begun:
			case <-time.After(rig.Limit):
				t.Fatal("the job does not begin")
			}
			refused("while it is preheated")
			close(release)
			rig.Eventually(t, "the job is done", rig.Limit, func() error {
				now, err := client.Wait(t.Context(), job.ID, 0)
				if err == nil && now.State != jobs.Done {
					err = fmt.Errorf("state %s", now.State)
				}
				return err
			})
			refused("when it is done")
			if r := by(t, n, "Bearer "+o.IssueToken("alice", "app"), path); r.Status != 200 || r.Sum != layer.Digest {
				t.Errorf("alice: %v", r)
			}
		})
	}
}

// thief is a peer with no credential who knows digests.
type thief struct{}

func (thief) Find(peer.InfoHash) (peer.Blob, error) { return peer.Blob{}, os.ErrNotExist }
func (thief) Reader() (peer.Reader, error)          { return nil, os.ErrNotExist }
func (thief) Opened(*peer.Conn)                     {}
func (thief) Have(*peer.Conn, []peer.Have)          {}
func (thief) Changed(*peer.Conn)                    {}
func (thief) Closed(*peer.Conn, error)              {}

// steal asks a peer port for a blob, and returns what it got.
func steal(t *testing.T, addr string, d digest.Digest, size int64) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e, err := peer.New(peer.Config{Logger: slog.New(slog.DiscardHandler), ID: peer.IDOf("thief"), Finder: thief{}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	swarm, err := e.Open(peer.Blob{Digest: d, Size: size, Content: thief{}, Handler: thief{}})
	if err != nil {
		t.Fatal(err)
	}
	defer swarm.Close()
	conn, err := swarm.Dial(ctx, addr, "")
	if err != nil {
		return nil, err
	}
	var got bytes.Buffer
	for i := range piece.NewLayout(size).Count() {
		for {
			transfer, err := conn.Request(i, &got)
			if err == nil {
				select {
				case <-transfer.Done():
				case <-ctx.Done():
					return got.Bytes(), ctx.Err()
				}
				if err = transfer.Err(); err == nil {
					break
				}
			}
			select {
			case <-conn.Done():
				return got.Bytes(), errors.New("the connection is closed")
			case <-ctx.Done():
				return got.Bytes(), err
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return got.Bytes(), nil
}

// stored waits until so many blobs are complete on a node.
func stored(t *testing.T, n *rig.Daemon, blobs float64) {
	rig.Eventually(t, "blobs are complete", rig.Limit, func() error {
		if got := n.Metric(`shoal_store_blobs{state="complete"}`); got < blobs {
			return fmt.Errorf("%v of %v", got, blobs)
		}
		return nil
	})
}

// A node that has no scheduler shares with nobody: no port of it gives a private
// blob to those who know the digest.
func TestNodeAloneServesNoPeer(t *testing.T) {
	o := readers(t, map[string]string{"app": "alice"})
	img := o.AddImage("app", "v1", noise(3, 200<<10))
	// Where peers would be served by default, at an address of this test's own.
	addr := "127.0.77.9:4401"
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Args: []string{"--peer-listen", addr}})
	alice := "Bearer " + o.IssueToken("alice", "app")
	layer := img.Layers[0]
	if r := by(t, n, alice, "app/blobs/"+layer.Digest.String()); r.Status != 200 {
		t.Fatalf("alice: %v", r)
	}
	if r := by(t, n, "", "app/blobs/"+layer.Digest.String()); r.Status != 401 {
		t.Fatalf("nobody, at the mirror: %v", r)
	}
	stored(t, n, 1)
	got, err := steal(t, addr, layer.Digest, layer.Size)
	if err == nil || len(got) > 0 {
		t.Errorf("nobody gets %d bytes of %d at the peer port, right: %v", len(got), layer.Size, digest.FromBytes(got) == layer.Digest)
	}
}

// Where peers do not prove who they are, they get what the registry gives to
// everyone, also if it came by a token, and nothing else, also after a restart.
func TestStrangerAtPeerPortGetsNothingPrivate(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{
		Users: map[string]string{"alice": "alice-password"}, Allow: func(user, repo string) bool { return user == "alice" || repo == "public" },
	}))
	private, public := o.AddImage("app", "v1", noise(4, 1<<20)), o.AddImage("public", "v1", noise(5, 1<<20))
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	n := rig.StartDaemon(t, rig.DaemonConfig{Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}})
	alice := "Bearer " + o.IssueToken("alice", "app", "public")
	for repo, img := range map[string]registrytest.Image{"app": private, "public": public} {
		for _, path := range []string{"/manifests/v1", "/blobs/" + img.Layers[0].Digest.String()} {
			if r := by(t, n, alice, repo+path); r.Status != 200 {
				t.Fatalf("alice asks for %s%s: %v", repo, path, r)
			}
		}
	}
	stored(t, n, 4)
	check := func(n *rig.Daemon, when string) {
		t.Helper()
		rig.Eventually(t, "what is public is shared", rig.Limit, func() error {
			got, err := steal(t, n.Peer, public.Layers[0].Digest, public.Layers[0].Size)
			if err == nil && digest.FromBytes(got) != public.Layers[0].Digest {
				err = errors.New("wrong bytes")
			}
			return err
		})
		for _, d := range []struct {
			digest digest.Digest
			size   int64
		}{{private.Layers[0].Digest, private.Layers[0].Size}, {private.Manifest.Digest, private.Manifest.Size}} {
			if got, err := steal(t, n.Peer, d.digest, d.size); err == nil || len(got) > 0 {
				t.Errorf("%s a stranger gets %d bytes of a private blob of %d, right: %v", when, len(got), d.size, digest.FromBytes(got) == d.digest)
			}
		}
	}
	check(n, "while the daemon runs")
	check(n.Restart(), "after a restart")
}
