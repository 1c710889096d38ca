package peer

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// party is what the connections of one identity share. An identity is what a
// peer cannot choose for itself: the name in its certificate, or without TLS
// the network of its address.
type party struct {
	name string
	// messages is what the connections may say beyond what each has to say of
	// its blob.
	messages *rate.Limiter
	// queued is how many bytes wait to be written to the party.
	queued atomic.Int64

	// Guarded by the mutex of the slots:
	owned int   // upload slots
	turn  int64 // when it last got one, in turns
}

const (
	// partyMessages is how many messages a second one party may send that it
	// need not, partyBurst how many at once.
	partyMessages = 2000
	partyBurst    = 8192
	// partyQueue and totalQueue bound what waits to be written to one party
	// and to all, in bytes. All sums of a blob of 100 GiB are half a MiB.
	partyQueue = 16 << 20
	totalQueue = 64 << 20
	// maxParties is how many parties are remembered, so that one that comes
	// again does not begin with a fresh allowance.
	maxParties = 4096
)

func newParty(name string) *party {
	return &party{name: name, messages: rate.NewLimiter(partyMessages, partyBurst)}
}

// networkOf returns the network that stands for an address: one IPv4 address,
// or the 64 bits of IPv6 within which a host takes any address it likes.
func networkOf(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// ticket is the place of one connection in a budget.
type ticket struct {
	party    string
	seq      uint64
	accepted bool        // the peer dialed: only such a connection is closed for another
	evict    func(error) // closes the connection, without waiting
}

// budget bounds connections, in all and by party. It is not safe for
// concurrent use.
type budget struct {
	most, each int
	seq        uint64
	total      int
	held       map[string][]*ticket // in the order in which they came
}

func newBudget(most, each int) *budget {
	return &budget{most: most, each: each, held: make(map[string][]*ticket)}
}

func (b *budget) add(t *ticket) {
	b.seq++
	t.seq = b.seq
	b.total++
	b.held[t.party] = append(b.held[t.party], t)
}

// remove takes a ticket out. One that is not there is no error: it was evicted.
func (b *budget) remove(t *ticket) {
	list := b.held[t.party]
	for i, other := range list {
		if other != t {
			continue
		}
		b.total--
		if len(list) == 1 {
			delete(b.held, t.party)
		} else {
			b.held[t.party] = append(list[:i:i], list[i+1:]...)
		}
		return
	}
}

// admitOldest takes t in and returns the ticket that had to go for it, or nil:
// the oldest of the same party if that has its share, else, if all places are
// taken, the oldest of the party that has most. So a party never loses a place
// to one that has as many, and who is through in milliseconds is not the
// oldest.
func (b *budget) admitOldest(t *ticket) (out *ticket) {
	switch {
	case len(b.held[t.party]) >= b.each:
		out = b.held[t.party][0]
	case b.total >= b.most:
		for _, list := range b.held {
			if out == nil || len(list) > len(b.held[out.party]) || len(list) == len(b.held[out.party]) && list[0].seq < out.seq {
				out = list[0]
			}
		}
	}
	if out != nil {
		b.remove(out)
	}
	b.add(t)
	return out
}

// admit takes t in if its party has less than its share, and returns the
// ticket that had to go for it, or nil: if all places are taken, the newest of
// the party that has most, if that is more than the party of t would have.
func (b *budget) admit(t *ticket) (out *ticket, err error) {
	mine := len(b.held[t.party])
	if mine >= b.each {
		return nil, fmt.Errorf("%w: %d with %s", ErrTooMany, mine, t.party)
	}
	if b.total >= b.most {
		most := mine + 1
		for _, list := range b.held {
			if len(list) <= most {
				continue
			}
			for i := len(list) - 1; i >= 0; i-- {
				if list[i].accepted {
					out, most = list[i], len(list)
					break
				}
			}
		}
		if out == nil {
			return nil, fmt.Errorf("%w: %d", ErrTooMany, b.total)
		}
		b.remove(out)
	}
	b.add(t)
	return out, nil
}

// addrOf returns the IP address of a peer. That of what is no TCP address is
// the zero Addr, and such connections count as from one host.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
