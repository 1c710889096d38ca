package registrytest

import (
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Fault turns a handler that behaves into one that does not.
type Fault func(http.Handler) http.Handler

// Order says which requests a fault meets. A field that is zero matches any.
type Order struct {
	Kind   Kind
	Method string
	Repo   string
	Digest digest.Digest
	// Tag is the tag of a manifest request.
	Tag string
	// Authorization is the header as it came.
	Authorization string
	// Skip lets so many matching requests pass unharmed first.
	Skip int
	// Times is how many requests the fault meets; 0 is all.
	Times int
}

type order struct {
	Order
	fault Fault
	seen  int
}

// Inject orders a fault. Of several that match a request the one ordered last
// is outermost. The function returned takes the order back.
func (o *Origin) Inject(where Order, f Fault) (cancel func()) {
	one := &order{Order: where, fault: f}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.orders = append(o.orders, one)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.orders = slices.DeleteFunc(o.orders, func(x *order) bool { return x == one })
	}
}

// Heal takes back every order.
func (o *Origin) Heal() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.orders = nil
}

func (o *Origin) faultsFor(r *http.Request, s subject) []Fault {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Fault
	for _, x := range o.orders {
		if !x.matches(r, s) {
			continue
		}
		x.seen++
		if x.seen > x.Skip && (x.Times == 0 || x.seen <= x.Skip+x.Times) {
			out = append(out, x.fault)
		}
	}
	return out
}

func (x *order) matches(r *http.Request, s subject) bool {
	return (x.Kind == "" || x.Kind == s.kind) &&
		(x.Method == "" || x.Method == r.Method) &&
		(x.Repo == "" || x.Repo == s.repo) &&
		(x.Digest == "" || x.Digest == s.digest) &&
		(x.Tag == "" || x.Tag == s.ref) &&
		(x.Authorization == "" || x.Authorization == r.Header.Get("Authorization"))
}

// Chain is several faults as one, the first outermost: it sees the body last.
func Chain(faults ...Fault) Fault {
	return func(h http.Handler) http.Handler {
		for _, f := range slices.Backward(faults) {
			h = f(h)
		}
		return h
	}
}
