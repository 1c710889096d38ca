package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shoalproject/shoal/runtimes"
)

// maxSkew is how far a clock may be off: certificates that were just issued and
// tokens allow for no more.
const maxSkew = time.Minute

// publicImages are ones that everybody may read, by registry. Their manifests
// are small and their tags do not go away.
var publicImages = map[string]string{
	"docker.io":         "library/busybox:latest",
	"registry.k8s.io":   "pause:3.10",
	"quay.io":           "prometheus/busybox:latest",
	"mcr.microsoft.com": "oss/kubernetes/pause:3.6",
	"gcr.io":            "google-containers/pause:3.2",
	"public.ecr.aws":    "docker/library/busybox:latest",
}

// clock compares this node's clock with that of a registry.
func (e *examination) clock(ctx context.Context) {
	const name = "clock"
	if e.node == nil {
		e.add(Skipped, name, "", "needs the daemon, which knows a registry to ask")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	for _, r := range e.node.Registries {
		resp, _, err := e.get(ctx, strings.TrimSuffix(r.Endpoint, "/")+"/v2/")
		if err != nil {
			continue // whether registries are reachable is not what is asked here
		}
		theirs, err := http.ParseTime(resp.Header.Get("Date"))
		if err != nil {
			continue
		}
		if skew := e.Now().Sub(theirs); skew.Abs() > maxSkew {
			e.add(Trap, name, "set the clock, and keep it by NTP: certificates and tokens are taken for expired, or for not valid yet",
				fmt.Sprintf("it is %s off that of %s", skew.Round(time.Second), r.Host))
			return
		}
		e.add(OK, name, "", "as that of "+r.Host)
		return
	}
	e.add(Skipped, name, "", "no registry answers this process directly, to compare with")
}

// pull makes the requests with which a pull begins.
func (e *examination) pull(ctx context.Context, asked []string, listening bool) {
	const name = "pull"
	if e.node != nil {
		e.allAllowed(asked)
	}
	if !listening {
		e.add(Skipped, name, "", "needs the mirror")
		return
	}
	host, repo, reference, ok := e.image(asked)
	if !ok {
		e.add(Skipped, name, "", "name an image of one of your registries with --image")
		return
	}
	image := host + "/" + repo + ":" + reference
	if strings.Contains(reference, ":") {
		image = host + "/" + repo + "@" + reference
	}
	start := time.Now()
	resp, body, err := e.manifest(ctx, host, repo, reference, "")
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		token := e.token(ctx, resp.Header.Values("Www-Authenticate"))
		if token == "" {
			e.private(host, image, resp.Header.Values("Www-Authenticate"))
			return
		}
		resp, body, err = e.manifest(ctx, host, repo, reference, token)
	}
	switch {
	case err != nil:
		e.add(Trap, name, "look into the daemon's log", fmt.Sprintf("%s: %v", image, cause(err)))
	case resp.StatusCode == http.StatusOK:
		e.add(OK, name, "", fmt.Sprintf("the manifest of %s, %d bytes in %s", image, len(body), time.Since(start).Round(time.Millisecond)))
	case resp.StatusCode == http.StatusUnauthorized:
		e.private(host, image, resp.Header.Values("Www-Authenticate"))
	default:
		allowed := false
		if e.node != nil {
			_, allowed = e.allowed(host)
		}
		remedy, text := explain(resp.StatusCode, body, host, allowed)
		e.add(Trap, name, remedy, fmt.Sprintf("%s: %s", image, text))
	}
}

// private says what becomes of pulls of an image for which the registry wants
// credentials.
func (e *examination) private(host, image string, challenges []string) {
	const name = "pull"
	auth := ""
	if e.node != nil {
		for _, r := range e.node.Registries {
			if r.Host == host {
				auth = r.Auth
			}
		}
	}
	switch {
	case auth == "node":
		e.add(Trap, name, "correct the credentials for "+host+" in the docker config.json of the daemon (--docker-config)",
			fmt.Sprintf("%s takes no credentials of this node for %s: pulls go past the mirror", host, image))
	case len(challenges) == 0:
		// A challenge for a token would have been handed on.
		e.add(Trap, name, fmt.Sprintf("let the node's docker config.json speak for its callers, --registry %s,auth=node, or hand passwords on, --allow-basic-relay", host),
			fmt.Sprintf("%s wants a password (Basic) for %s, which --auth relay asks of nobody: pulls go past the mirror, and nothing is shared", host, image))
	case e.Runtime == runtimes.Containerd || e.Runtime == runtimes.K3s || e.Runtime == runtimes.RKE2:
		e.add(OK, name, "", fmt.Sprintf("the registry asks for credentials for %s, and the mirror says so: pulls of pods bring theirs", image))
	default:
		e.add(OK, name, "", fmt.Sprintf("the registry asks for credentials for %s, which this runtime sends to no mirror: its pulls of private images go to the registry itself", image))
	}
}

// allAllowed looks whether the daemon gets what the runtime asks of it.
func (e *examination) allAllowed(asked []string) {
	var refused, flags []string
	for _, r := range asked {
		if _, ok := e.allowed(r); !ok && r != runtimes.Everything {
			refused, flags = append(refused, r), append(flags, "--registry "+r)
		}
	}
	if len(refused) > 0 {
		e.add(Trap, "registries", fmt.Sprintf("start the daemon with %s besides those it has, or install for others", strings.Join(flags, " ")),
			fmt.Sprintf("the runtime asks for %s, which the daemon does not allow: every pull from there goes past it", strings.Join(refused, ", ")))
		return
	}
	hosts := make([]string, len(e.node.Registries))
	for i, r := range e.node.Registries {
		hosts[i] = r.Host
	}
	e.add(OK, "registries", "", "allowed: "+strings.Join(hosts, ", "))
}

// image returns what to ask for.
func (e *examination) image(asked []string) (host, repo, reference string, ok bool) {
	image := e.Image
	if image == "" {
		for _, r := range slices.Sorted(maps.Keys(publicImages)) {
			if !slices.Contains(asked, r) && !slices.Contains(asked, runtimes.Everything) {
				continue
			}
			if e.node != nil {
				if _, allowed := e.allowed(r); !allowed {
					continue
				}
			}
			image = r + "/" + publicImages[r]
			break
		}
	}
	host, rest, found := strings.Cut(image, "/")
	if !found {
		return "", "", "", false
	}
	if repo, reference, ok = strings.Cut(rest, "@"); ok {
		return host, repo, reference, true
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		return host, rest[:i], rest[i+1:], true
	}
	return host, rest, "latest", true
}

// manifest asks the mirror as containerd does.
func (e *examination) manifest(ctx context.Context, host, repo, reference, token string) (*http.Response, []byte, error) {
	u := fmt.Sprintf("%s/v2/%s/manifests/%s?ns=%s", e.Options.Mirror, repo, reference, url.QueryEscape(host))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range []string{
		"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
	} {
		req.Header.Add("Accept", t)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return e.do(req)
}

var challengePair = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// token gets the token that a registry gives to everybody, as containerd does
// from the challenge that the mirror passes on. Empty: there is none.
func (e *examination) token(ctx context.Context, challenges []string) string {
	for _, c := range challenges {
		if !strings.HasPrefix(strings.ToLower(c), "bearer ") {
			continue
		}
		query, realm := url.Values{}, ""
		for _, m := range challengePair.FindAllStringSubmatch(c, -1) {
			if m[1] == "realm" {
				realm = m[2]
			} else {
				query.Set(m[1], m[2])
			}
		}
		resp, body, err := e.get(ctx, realm+"?"+query.Encode())
		var answer struct {
			Token       string
			AccessToken string `json:"access_token"`
		}
		if err == nil && resp.StatusCode == http.StatusOK && json.Unmarshal(body, &answer) == nil {
			return cmp.Or(answer.Token, answer.AccessToken)
		}
	}
	return ""
}

// explain says what a refusal of the mirror means, for a registry that the
// daemon allows or does not.
func explain(status int, body []byte, host string, allowed bool) (remedy, text string) {
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	code := ""
	text = fmt.Sprintf("the mirror answers %d", status)
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 {
		code = answer.Errors[0].Code
		text += ": " + answer.Errors[0].Message
	}
	switch {
	case status == http.StatusForbidden && !allowed:
		return "start the daemon with --registry " + host + " besides those it has", text
	case status == http.StatusForbidden:
		return "name an image that everybody may read with --image, or see whether " + host + " refuses this node's address", text
	case code == "TOOMANYREQUESTS":
		return "wait: " + host + " takes no more requests from this address for now; with credentials it may take more", text
	case status == http.StatusNotFound:
		return "name an image that exists with --image", text
	case strings.Contains(text, "x509") || strings.Contains(text, "certificate"):
		return fmt.Sprintf("name the registry's CA: --registry %s,ca=FILE; or, if it is not valid at this time, set the clock", host), text
	}
	return "see that this node reaches the registry " + host, text
}
