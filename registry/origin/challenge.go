package origin

import "strings"

// challenge is one parsed challenge of a WWW-Authenticate header.
type challenge struct {
	basic                 bool
	realm, service, scope string
}

// pickChallenge returns the challenge to answer: Bearer if there is one,
// which does not give the password to the registry, else Basic.
func pickChallenge(headers []string) (c challenge, ok bool) {
	for _, h := range headers {
		for _, one := range parseChallenges(h) {
			switch {
			case strings.EqualFold(one.scheme, "bearer") && one.params["realm"] != "":
				return challenge{realm: one.params["realm"], service: one.params["service"], scope: one.params["scope"]}, true
			case strings.EqualFold(one.scheme, "basic"):
				c, ok = challenge{basic: true}, true
			}
		}
	}
	return c, ok
}

type rawChallenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads a header value, which may hold several challenges
// (RFC 9110, 11.6.1). What does not parse ends it: the challenges before it
// stand.
func parseChallenges(s string) []rawChallenge {
	var out []rawChallenge
	for {
		s = strings.TrimLeft(s, " \t,")
		word, rest := cutToken(s)
		if word == "" {
			return out
		}
		after := strings.TrimLeft(rest, " \t")
		if !strings.HasPrefix(after, "=") || len(out) == 0 {
			out = append(out, rawChallenge{scheme: word, params: map[string]string{}})
			s = rest
			continue
		}
		value, rest, ok := cutValue(strings.TrimLeft(after[1:], " \t"))
		if !ok {
			return out
		}
		params := out[len(out)-1].params
		if key := strings.ToLower(word); params[key] == "" {
			params[key] = value
		}
		s = rest
	}
}

// cutValue cuts a token or a quoted string off s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

func cutToken(s string) (token, rest string) {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
