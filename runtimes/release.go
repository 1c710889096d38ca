package runtimes

import (
	"fmt"
	"regexp"
	"strconv"
)

// Release is a release of containerd. The zero value is one that is not known.
type Release struct {
	Major, Minor int
	// MinorKnown is false if only Major could be told.
	MinorKnown bool
}

var releasePattern = regexp.MustCompile(`v?(\d+)\.(\d+)\.\d+`)

// ParseRelease finds a release in what `containerd --version` prints, or in
// any text with a version of three numbers.
func ParseRelease(s string) (Release, bool) {
	m := releasePattern.FindStringSubmatch(s)
	if m == nil {
		return Release{}, false
	}
	major, _ := strconv.Atoi(m[1]) // digits; too many of them are no release
	minor, _ := strconv.Atoi(m[2])
	return Release{major, minor, true}, major > 0
}

func (r Release) String() string {
	switch {
	case r.Major == 0:
		return "unknown"
	case !r.MinorKnown:
		return fmt.Sprintf("%d.x", r.Major)
	}
	return fmt.Sprintf("%d.%d", r.Major, r.Minor)
}

// mayBe reports whether the release can be this one or a later one.
func (r Release) mayBe(major, minor int) bool {
	if r.Major == 0 || r.Major != major {
		return r.Major == 0 || r.Major > major
	}
	return !r.MinorKnown || r.Minor >= minor
}

// is reports whether the release is certainly this one or a later one.
func (r Release) is(major, minor int) bool {
	if r.Major != major {
		return r.Major > major
	}
	return minor == 0 || r.MinorKnown && r.Minor >= minor
}
