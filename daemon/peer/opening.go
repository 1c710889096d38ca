package peer

import pp "github.com/anacrolix/torrent/peer_protocol"

// opening handles what comes before the peer counts as known: who it is, what
// it has, whether it may be asked, and nothing that would need these.
func (r *reader) opening(m *pp.Message) error {
	if err := r.charge(1); err != nil {
		return err
	}
	switch {
	case m.Type == pp.Extended && m.ExtendedID == pp.HandshakeExtendedID:
		if err := r.introduction(m.ExtendedPayload); err != nil {
			return err
		}
	case isStatement(m.Type) && !r.stated:
		r.stated = true
		if err := r.statement(m); err != nil {
			return err
		}
	case m.Type == pp.Choke || m.Type == pp.Unchoke:
		r.ruled = true
		r.mu.Lock()
		r.choked = m.Type == pp.Choke
		r.mu.Unlock()
	default:
		return violation("%s before the peer has introduced itself", m.Type)
	}
	r.mu.Lock()
	r.known = r.stated && r.ruled && r.introduced
	r.mu.Unlock()
	if !r.known {
		return nil
	}
	r.s.handler.Opened(r.Conn)
	close(r.opened)
	if claims := r.claims(); len(claims) > 0 {
		r.s.handler.Have(r.Conn, claims)
	}
	return nil
}

func isStatement(kind pp.MessageType) bool {
	return kind == pp.Bitfield || kind == pp.HaveAll || kind == pp.HaveNone
}

// claims returns the pieces that the peer says it has.
func (r *reader) claims() (pieces []Have) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.has.Len() {
		if r.has.Has(i) {
			pieces = append(pieces, Have{Index: i})
		}
	}
	return pieces
}

func (r *reader) introduction(payload []byte) error {
	r.mu.Lock()
	again := r.introduced
	r.mu.Unlock()
	if again {
		return violation("extension handshake again")
	}
	in, err := decodeIntroduction(payload)
	if err != nil {
		return err
	}
	if size := r.s.layout.Size(); in.Size != size {
		return violation("peer takes %s for a blob of %d bytes, not %d", r.s.digest, in.Size, size)
	}
	r.s.pushSums(r.Conn, in)
	return nil
}

// statement takes over what the peer has at first.
func (r *reader) statement(m *pp.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.has.Len()
	if m.Type == pp.Bitfield {
		for i, bit := range m.Bitfield {
			switch {
			case bit && i >= n:
				return violation("bitfield with a spare bit set")
			case bit:
				r.gains(i)
			}
		}
	}
	if m.Type == pp.HaveAll {
		for i := range n {
			r.gains(i)
		}
	}
	return nil
}
